"""Learning rates: every system trained at each of `comparison.rates` on the tuning seed, and the one that suits it.

Each rate is a folder `DIR/lr-RATE` with a run of its own. A system is trained whole at its rate: with the experts that
it rests on.

    DIR/lr-RATE/tuning.json   the accuracy of every system on validation questions, at its best scale
    DIR/rates.json            all of them, and the rate of each system
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from adapters.errors import UserError
from trainer.compare.answers import scale_systems
from trainer.compare.choices import Rates, chosen_rates, is_system, system_accuracies
from trainer.local.train import is_trained, run_processes, train
from trainer.plan.comparison import PAIRED, of_seeds
from trainer.plan.make import make_plan
from trainer.plan.results import planned_results
from trainer.recipe import Recipe
from trainer.reporting.percent import percent


def tune(recipe: Recipe, out: Path) -> Rates:
    """Trains the tuning seed at every rate and chooses. What was tried is not tried again."""
    config = recipe.comparison
    assert config is not None
    tried = {rate: _tried(recipe, out, rate) for rate in config.rates}
    chosen = chosen_rates(tried)
    systems = {system: {f"{rate:g}": tried[rate][system] for rate in config.rates} for system in chosen}
    before = read_rates(out)
    for system, accuracies in systems.items():
        # A system of before has its answers at the rate of before.
        if before and before.chosen.get(system, chosen[system]) != chosen[system]:
            raise UserError(
                f"{out}: {system} was trained at {before.chosen[system]:g}, chosen among other rates; take another "
                "folder with --out"
            )
        shown = ", ".join(f"{rate}: {percent(accuracy)}" for rate, accuracy in accuracies.items())
        print(f"learning rate of {system}: {chosen[system]:g} (validation, {shown})", flush=True)
    rates = Rates(systems, chosen)
    _write(out / "rates.json", asdict(rates))
    return rates


def _tried(recipe: Recipe, out: Path, rate: float) -> dict[str, float]:
    """The accuracy of each system at a rate."""
    assert recipe.comparison is not None
    folder, seed = folder_of(out, rate), recipe.comparison.tuning_seed
    path = folder / "tuning.json"
    accuracies: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    part = of_seeds(at_rate(recipe, rate, recipe.comparison.systems), seed, seed)
    planned = [result for result in planned_results(make_plan(part)) if is_system(result)]
    # With systems that were added later the others' accuracies stay.
    if missing := [result for result in planned if result.system not in accuracies]:
        print(f"learning rate {rate:g}, on tuning seed {seed}", flush=True)
        with run_processes(folder, part) as processes, tempfile.TemporaryDirectory(dir=folder) as name:
            if not is_trained(folder, part):
                train(part, folder, processes)
            models = scale_systems(part, folder / "store", missing, Path(name), processes, is_asked=True)
        accuracies |= system_accuracies(models, missing)
        _write(path, accuracies)
    return accuracies


def _write(path: Path, numbers: object) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(numbers, indent=1) + "\n")
    draft.replace(path)  # whole or not there: it cost a seed's training


def read_rates(out: Path) -> Rates | None:
    """The rates that were chosen; None where nothing was."""
    path = out / "rates.json"
    return Rates(**json.loads(path.read_text())) if path.exists() else None


def systems_by_rate(recipe: Recipe, rates: Rates) -> Iterator[tuple[float, tuple[str, ...]]]:
    """What is trained at each rate that a system has, beside experts."""
    assert recipe.comparison is not None
    systems = recipe.comparison.systems
    for rate in recipe.comparison.rates:
        chosen = {system for system, of_system in rates.chosen.items() if of_system == rate}
        trained = tuple(system for system in systems if system in chosen)
        is_pair_alone = PAIRED.issuperset(trained) and not PAIRED.issuperset(systems)
        # Experts and their merges come with whatever else is trained, but beside systems of the pair only two of them.
        if chosen - set(trained) and (not trained or is_pair_alone):
            yield rate, ()
        if trained:
            yield rate, trained


def at_rate(recipe: Recipe, rate: float, systems: tuple[str, ...]) -> Recipe:
    """The comparison of these systems, all at a rate."""
    assert recipe.comparison is not None
    optimiser = recipe.optimiser.model_copy(update={"lr": rate})
    comparison = recipe.comparison.model_copy(update={"systems": systems, "rates": ()})
    return recipe.model_copy(update={"optimiser": optimiser, "comparison": comparison})


def folder_of(out: Path, rate: float) -> Path:
    return out / f"lr-{rate:g}"

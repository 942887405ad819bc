"""What is chosen for each system of a comparison by questions that nothing is reported on: a scale, a learning rate.

Every system has the same grid and is judged by the metric that decides (the first of its ways of answering), on what it
is for: a system of the pair on the pair, an expert at home, all others on all capabilities. A best value that was
chosen by the questions of the tables would be ahead by luck.

Left out: asking (`answers`) and training at each learning rate (`seeds`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.base import locate
from adapters.merge import cosines, make_merge_plan, write_adapter
from adapters.merge_inputs import open_base, open_revision
from trainer.evaluation.exams import Exam, ExamResult, capability_means, exams
from trainer.plan.comparison import EXPERTS, ONE_TEACHER, PAIRED, SINGLE_BRANCH_SYSTEMS
from trainer.plan.results import Result
from trainer.plan.seed_plan import pair_of
from trainer.recipe import AnswersConfig, Recipe


@dataclass(frozen=True, slots=True)
class ScaledModel:
    """How a system's result was made of its branches."""

    scale: float
    tried: dict[str, float]
    """Accuracy on validation questions, by scale; empty: there was no choice."""
    cosines: dict[str, float | None]
    """Between the deltas of two branches; None where one of them is zero, none where there is one branch."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The learning rates of the systems, as they were chosen."""

    tried: dict[str, dict[str, float]]
    """By system and rate, the accuracy on the tuning seed's validation questions."""
    chosen: dict[str, float]


def is_system(result: Result) -> bool:
    """Whether it stands for its system, and so has a scale of its own: not a branch that is merged, nor an expert as it
    was when it taught."""
    # Students of one teacher are read against it as it was, and a scale would change what is compared.
    is_single = result.system in SINGLE_BRANCH_SYSTEMS - ONE_TEACHER and "@" not in result.row
    return result.is_merge or is_single


def key_of(result: Result) -> str:
    """Its name among the scales of a seed: `copd3`, `experts-text`."""
    return result.system if result.is_merge or not result.row else f"{result.system}-{result.row}"


def home_of(recipe: Recipe, result: Result) -> tuple[str, ...]:
    """The capabilities that a result is for."""
    # Not by `capabilities` alone: a student that only listened has none, and a fork learnt its own before.
    if result.system == EXPERTS or result.is_merge:
        return result.capabilities
    names = tuple(recipe.capabilities)
    return pair_of(recipe.method, names) if result.system in PAIRED else names


def candidate(result: Result, scale: float, folder: Path) -> Path:
    """The folder of a result at a scale, as an adapter. Its name is the model's."""
    return folder / f"{result.model}-{100 * scale:.0f}"


def scales_of(recipe: Recipe, result: Result) -> tuple[float, ...]:
    """Those that are tried for a result, or the one that it has."""
    assert recipe.comparison is not None
    return recipe.comparison.scales or (recipe.merge.scale if result.is_merge else 1.0,)


def write_candidates(
    recipe: Recipe, store: Path, results: Sequence[Result], folder: Path
) -> dict[str, dict[str, float | None]]:
    """Each result as an adapter at every scale; how far the branches of each agree, by its key."""
    base = open_base(locate(recipe.base.name), recipe.base.name)
    agreements: dict[str, dict[str, float | None]] = {}
    for result in results:
        branches = [open_revision(store, ref, base) for ref in result.refs]
        for scale in scales_of(recipe, result):
            write_adapter(base, make_merge_plan(branches, {}, scale=scale), candidate(result, scale, folder))
        agreements[key_of(result)] = {
            " - ".join(name.removeprefix(f"s{result.seed}-") for name in pair.split()): cosine
            for pair, cosine in (cosines(base, branches) if result.is_merge else {}).items()
        }
    return agreements


def validation_exams(recipe: Recipe, results: Sequence[Result]) -> list[Exam]:
    """Exams of all capabilities that any of the results is for."""
    names = {name for result in results for name in home_of(recipe, result)}
    return exams(on_validation(recipe), only=names, draw=results[0].seed)


def on_validation(recipe: Recipe) -> Recipe:
    """The recipe whose exams are the miniature's validation questions, answered in the way that decides."""
    plain = {name: config.model_copy(update={"held_out": None}) for name, config in recipe.capabilities.items()}
    primary = recipe.evaluation.answers.primary
    # Others would cost as many answers again, and choose nothing. A recipe of before has the likeliest answer alone.
    answers = AnswersConfig(greedy=primary is None, primary=primary)
    changes: dict[str, object] = {"answers": answers, "sets": {}}
    if recipe.comparison is not None and recipe.comparison.validation is not None:
        changes["questions"] = recipe.comparison.validation
    evaluation = recipe.evaluation.model_copy(update=changes)
    return recipe.model_copy(update={"capabilities": plain, "evaluation": evaluation})


def tried_scales(
    result: Result, home: Sequence[str], scales: Sequence[float], results: Sequence[ExamResult]
) -> dict[float, float]:
    """Accuracy of a result by scale, on what it is for."""
    means = capability_means([answered for answered in results if answered.capability in home])
    accuracy = {mean.model: mean.accuracy.mean for mean in means}
    return {scale: accuracy[candidate(result, scale, Path()).name] for scale in scales}


def system_accuracies(models: Mapping[str, ScaledModel], results: Sequence[Result]) -> dict[str, float]:
    """The accuracy of each system at its best scales; of the experts, which are several results, the mean."""
    values: dict[str, list[float]] = {}
    for result in results:
        if key_of(result) in models:
            # Each at its own best scale, as it will be reported.
            values.setdefault(result.system, []).append(max(models[key_of(result)].tried.values()))
    return {system: sum(of_system) / len(of_system) for system, of_system in values.items()}


def chosen_rates(accuracies: Mapping[float, Mapping[str, float]]) -> dict[str, float]:
    """The learning rate of each system, from its accuracy at each; of equal ones the lowest."""
    # -1: a system that one rate has no number of is never chosen at that rate.
    systems = dict.fromkeys(system for of_rate in accuracies.values() for system in of_rate)
    return {system: max(sorted(accuracies), key=lambda lr: accuracies[lr].get(system, -1.0)) for system in systems}

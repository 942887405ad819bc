from pathlib import Path

import pytest

from adapters.names import Ref
from trainer.compare.costs import closure, cost_by_step, cost_of
from trainer.plan.cost import Cost
from trainer.plan.make import make_plan
from trainer.plan.results import planned_results
from trainer.recipe import ComparisonConfig
from trainer.recipe.file import load

RECIPE = load(Path("recipes/miniature/compare.toml"), ["method.cycles=2"])
SYSTEMS = (*ComparisonConfig().systems, "mopd-equal")
PLAN = make_plan(RECIPE.model_copy(update={"comparison": ComparisonConfig(seeds=1, systems=SYSTEMS)}))
RESULTS = {(result.system, result.row): result.refs for result in planned_results(PLAN)}


@pytest.mark.parametrize(
    ("result", "steps"),
    [
        (("experts", "text"), 10),
        (("mixed3", ""), 30),
        (("merge3", "merged"), 30),
        (("static_v2t", ""), 10 + 10 + 8),  # its own expert, which it goes on from, and its teacher
        (("mopd", ""), 30 + 12),
        (("mopd-equal", ""), 3 * 6 + 12),
        (("copd2", "merged"), 20),
        (("copd2", "text"), 10 + 9),  # its teacher's last step teaches nobody
        (("copd3", "merged"), 30),
    ],
)
def test_a_result_rests_on_its_steps_its_teachers_and_its_fork(result: tuple[str, str], steps: int):
    assert len(closure(RESULTS[result], PLAN)) == steps


def test_the_cost_is_what_the_run_reported():
    metrics = {
        "native/length": 20.0,
        "native/decided": 0.25,
        "s0-experts-text-text/length": 10.0,
        "s0-experts-text-text/delta": 0.0,
    }
    event = {"kind": "step", "branch": "b", "step": 1, "metrics": metrics, "seconds": {"gather": 1.0, "learn": 2.0}}
    native, taught = 6 * 4, 6 * 2
    assert cost_by_step([event], RECIPE.rollout) == {
        Ref("b", 1): Cost(
            1, native + taught, native * 20 + taught * 10, 2 * taught * 10, 0.75 * native * 20 + taught * 10, 3.0
        )
    }


def test_a_step_that_two_results_rest_on_counts_once():
    spent = {step.makes: Cost(steps=1, seconds=2.0) for step in PLAN.steps}
    assert cost_of(RESULTS["static_v2t", ""] + RESULTS["experts", "text"], PLAN, spent) == Cost(steps=28, seconds=56.0)
    assert Cost(steps=28, seconds=56.0).over(2) == Cost(steps=14, seconds=28.0)

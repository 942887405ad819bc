from pathlib import Path

import pytest

from adapters.names import Ref
from trainer.compare.costs import Spent, closure, cost_of, spent_by_step
from trainer.plan.comparison import planned_results
from trainer.plan.make import make_plan
from trainer.recipe import ComparisonConfig
from trainer.recipe.file import load

RECIPE = load(Path("recipes/miniature/compare.toml"), ["method.cycles=2"])
SYSTEMS = (*ComparisonConfig().systems, "mopd-equal")
MADE = make_plan(RECIPE.model_copy(update={"comparison": ComparisonConfig(seeds=1, systems=SYSTEMS)}))
RESULTS = {(one.system, one.row): one.refs for one in planned_results(MADE)}


@pytest.mark.parametrize(
    ("result", "steps"),
    [
        (("x", "text"), 10),
        (("mixed3", ""), 30),
        (("merge3", "merged"), 30),
        (("vt", ""), 10 + 10 + 8),  # its own expert, which it goes on from, and its teacher
        (("mopd", ""), 30 + 12),
        (("mopd-equal", ""), 3 * 6 + 12),
        (("copd2", "merged"), 20),
        (("copd2", "text"), 10 + 9),  # its teacher's last step teaches nobody
        (("copd3", "merged"), 30),
    ],
)
def test_a_result_rests_on_its_own_steps_its_teachers_and_what_it_was_forked_from(result, steps):
    assert len(closure(RESULTS[result], MADE)) == steps


def test_what_was_spent_is_what_the_run_told():
    metrics = {
        "native/length": 20.0,
        "native/decided": 0.25,
        "s0-x-text-text/length": 10.0,
        "s0-x-text-text/delta": 0.0,
    }
    told = {"kind": "step", "branch": "b", "step": 1, "metrics": metrics, "seconds": {"gather": 1.0, "learn": 2.0}}
    own, other = 6 * 4, 6 * 2
    assert spent_by_step([told], RECIPE.rollout) == {
        Ref("b", 1): Spent(1, own + other, own * 20 + other * 10, 2 * other * 10, 0.75 * own * 20 + other * 10, 3.0)
    }


def test_a_step_that_several_rest_on_counts_once():
    spent = {step.makes: Spent(steps=1, seconds=2.0) for step in MADE.steps}
    assert cost_of(RESULTS["vt", ""] + RESULTS["x", "text"], MADE, spent) == Spent(steps=28, seconds=56.0)
    assert Spent(steps=28, seconds=56.0).over(2) == Spent(steps=14, seconds=28.0)

"""What steps take at most: time of the engine, records on the disk, and which of them stay."""

from pathlib import Path

import pytest

from trainer.plan.bounds import KEPT_BYTES, engine_seconds, kept_rollouts, record_bytes, too_long
from trainer.plan.make import make_plan
from trainer.recipe import Recipe
from trainer.recipe.file import load, run_id

PAPER = Path("recipes/paper-copd3.toml")


def recipe(*changes: str, path: Path = PAPER) -> Recipe:
    return load(path, changes)


def test_the_papers_steps_take_their_tokens_at_the_rate() -> None:
    steps = {str(step.makes): step for step in make_plan(recipe()).steps}
    rlvr = 256 * (8 * 16_384 + 16_384 / 5) / 2000
    assert engine_seconds(steps["image@1"], recipe()) == pytest.approx(rlvr)
    scored = 2 * 256 * (8 * 16_384 + 16_384) / 5 / 2000
    assert engine_seconds(steps["image@7"], recipe()) == pytest.approx(2 * rlvr + scored)
    assert engine_seconds(steps["text@7"], recipe()) == pytest.approx(3 * rlvr + 2 * scored)


def test_a_step_that_is_too_long_is_told_with_the_rate_that_it_needs() -> None:
    slow = recipe("budget.tokens_per_s=100")
    why = too_long(make_plan(slow), slow)
    assert why is not None
    assert "that needs 1,544 tokens a second" in why
    enough = recipe("budget.tokens_per_s=1545")
    assert too_long(make_plan(enough), enough) is None


def test_a_record_grows_with_a_teachers_likeliest_tokens() -> None:
    step = next(step for step in make_plan(recipe()).steps if step.teachers)
    plain = record_bytes(step, recipe())
    more = recipe('loss.teacher_signal="top-k"', "loss.teacher_top_k=20")
    completions = 256 * 8 * (1 + len(step.teachers))
    assert record_bytes(step, more) - plain == completions * 16_384 * 8 * 20


@pytest.mark.parametrize(("keep", "steps"), [("all", None), ("last", 1), ("7", 7), ("200", None), ("null", 3)])
def test_as_many_records_stay_as_the_recipe_says(keep: str, steps: int | None) -> None:
    keeping = recipe(f"rollouts.keep={keep}")
    plan = make_plan(keeping)
    records = kept_rollouts(plan, keeping)
    assert records.steps == steps
    sizes = {branch: [record_bytes(step, keeping) for step in plan.steps if step.branch == branch]
             for branch in keeping.branches}  # fmt: skip
    assert records.bytes == sum(sum(sorted(of_branch)[-(steps or 200) :]) for of_branch in sizes.values())
    assert (records.bytes <= KEPT_BYTES) == (keep in ("last", "null"))


def test_a_small_run_keeps_all_and_its_name() -> None:
    path = Path("recipes/miniature.toml")
    small = recipe(path=path)
    assert kept_rollouts(make_plan(small), small).steps is None
    trimmed = recipe("rollouts.keep=last", "budget.tokens_per_s=9", path=path)
    assert run_id(trimmed) == run_id(small)

from collections import Counter

from adapters.names import Ref
from tests.faults.recipes import small
from trainer.orchestration.coordinator import due, retirable
from trainer.plan.make import make_plan
from trainer.recipe.file import run_id


def test_the_same_recipe_is_the_same_run_whatever_its_budget() -> None:
    assert run_id(small()) == run_id(small("budget.keep_last=7", "tracking.project=mine"))
    assert run_id(small()) != run_id(small("seed=1"))


def test_every_branch_has_its_current_job_and_the_next_one_queued() -> None:
    made = make_plan(small())
    assert [job.id for job in due(made, "r", {})] == [
        f"r:{branch}:{first}" for first in (0, 2) for branch in ("text", "image", "video")
    ]
    jobs = list(due(made, "r", {"text": 3, "image": 5, "video": 6}))
    assert [(job.branch, job.first, job.last) for job in jobs] == [("text", 3, 5), ("text", 5, 6), ("image", 5, 6)]


def test_nothing_that_is_still_named_is_ever_retired() -> None:
    """A whole run, step by step: what each step names is there when it is made."""
    made = make_plan(small("method.cycles=6", "method.rlvr_steps=5"))
    heads = dict.fromkeys(("text", "image", "video"), 0)
    kept = {branch: {0} for branch in heads}
    sizes = Counter[str]()
    for number in range(1, made.head("text") + 1):
        steps = [step for step in made.steps if step.number == number]
        for step in steps:
            for ref in step.needs:
                assert ref.revision in kept[ref.branch]
            heads[step.branch] = number
            kept[step.branch].add(number)
            for ref in list(retirable(made, heads, kept, keep_last=4)):
                kept[ref.branch].remove(ref.revision)
            sizes[step.branch] = max(sizes[step.branch], len(kept[step.branch]))
    ends = [step.number for step in made.steps if step.is_phase_end and step.branch == "text"]
    assert kept["text"] >= {*ends, *range(made.head("text") - 3, made.head("text") + 1)}
    assert max(sizes.values()) <= len(ends) + 4


def test_what_a_branch_is_yet_to_start_from_stays() -> None:
    made = make_plan(small('method.kind="pilot"', "method.steps=10", 'method.student="text"', "method.checkpoints=5"))
    heads = {start.branch: 0 for start in made.starts}
    kept = {"image": set(range(11))}
    assert Ref("image", 2) not in set(retirable(made, {**heads, "image": 10}, kept, keep_last=4))

import asyncio
from collections import Counter
from typing import cast

from adapters.names import Ref
from clients.client import AsyncClient
from tests.faults.recipes import small
from trainer.orchestration.coordinator import Coordinator, due, retirable
from trainer.plan.make import make_plan
from trainer.queue.client import Queue
from trainer.recipe.file import run_id


def test_the_same_recipe_is_the_same_run_whatever_its_budget() -> None:
    assert run_id(small()) == run_id(small("budget.keep_last=7", "tracking.project=mine"))
    assert run_id(small()) != run_id(small("seed=1"))


def test_every_branch_has_its_current_job_and_the_next_one_queued() -> None:
    plan = make_plan(small())
    assert [job.id for job in due(plan, "r", {})] == [
        f"r:{branch}:{first}" for first in (0, 2) for branch in ("text", "image", "video")
    ]
    jobs = list(due(plan, "r", {"text": 3, "image": 5, "video": 6}))
    assert [(job.branch, job.first, job.last) for job in jobs] == [("text", 3, 5), ("text", 5, 6), ("image", 5, 6)]


def test_nothing_that_is_still_named_is_ever_retired() -> None:
    """A whole run, step by step: what each step names is there when it is made."""
    plan = make_plan(small("method.cycles=6", "method.rlvr_steps=5"))
    heads = {start.branch: 0 for start in plan.starts}
    stored = {branch: {0} for branch in heads}
    sizes = Counter[str]()
    for number in range(1, plan.head("text") + 1):
        for step in [step for step in plan.steps if step.number == number]:
            assert all(ref.revision in stored[ref.branch] for ref in step.needs)
            heads[step.branch] = number
            stored[step.branch].add(number)
            for ref in list(retirable(plan, heads, stored, keep_last=4)):
                assert ref.revision is not None
                stored[ref.branch].remove(ref.revision)
            sizes[step.branch] = max(sizes[step.branch], len(stored[step.branch]))
    ends = [step.number for step in plan.steps if step.is_phase_end and step.branch == "text"]
    assert stored["text"] >= {*ends, *range(plan.head("text") - 3, plan.head("text") + 1)}
    assert max(sizes.values()) <= len(ends) + 4


def test_a_head_that_falls_is_told_and_a_queue_that_forgot_it_is_none(queue: Queue) -> None:
    coordinator = Coordinator("run", small(), queue, cast(AsyncClient, None))  # of no use for warnings

    async def look() -> None:
        for heads in ({"text": 5}, {}, {"text": 5}, {"text": 3}, {"text": 4}):
            await coordinator._warn(heads)

    asyncio.run(look())
    (event,) = [event for _, event in queue.events()]
    assert (event["kind"], event["branch"]) == ("fell", "text")
    assert event["text"].startswith("its head fell from 5 to 3")


def test_what_a_branch_is_yet_to_start_from_stays() -> None:
    plan = make_plan(small('method.kind="ages"', "method.steps=10", 'method.student="text"', "method.checkpoints=5"))
    heads = {start.branch: 0 for start in plan.starts}
    stored = {"image": set(range(11))}
    assert Ref("image", 2) not in set(retirable(plan, {**heads, "image": 10}, stored, keep_last=4))

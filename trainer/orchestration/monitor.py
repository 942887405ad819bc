"""What is measured while a run goes on: at every phase end how alike the branches are, every so often how good.

A moment is a set of revisions that a plan makes together. When all of them are there it is measured, beside the run and
through the service; nothing waits for it but the next cycle of an adaptive rhythm, which is decided here. Results are
events of the run. Phase ends are never retired, so a moment may be measured as late as it likes.

Left out: what is trained, and the exam at the end of a run (`finish`).
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from adapters.names import BASE, Ref
from clients.client import AsyncClient, RefusedError, ServiceError
from trainer.evaluation.exams import Decode, Exam, decoder, exam_results, examine, exams, mean_results
from trainer.evaluation.overlap import Overlaps, alarms, lowest_overlap, measure_overlap
from trainer.parts import Prompt
from trainer.plan.rhythm import decided, decision, next_rlvr_steps
from trainer.plan.steps import Plan, Segment, is_there
from trainer.queue.client import Queue
from trainer.recipe import Recipe, edges
from trainer.rewards.pool import HALF_THE_CORES, RewardPool

MOST_COMPARED = 8
"""Each revision's answers are scored by all of them: of more, a moment is not measured."""
_SEEN = "seen:"

log = logging.getLogger("coordinator")


@dataclass(frozen=True, slots=True)
class PhaseEnd:
    """Revisions that end a phase together, and the teachers that are not among them."""

    phase: str
    step: int
    refs: tuple[Ref, ...]
    system: str = ""
    is_watched: bool = True

    @property
    def name(self) -> str:
        return f"{_SEEN}{self.system}:{self.phase}:{self.step}"


def phase_ends(made: Plan) -> list[PhaseEnd]:
    """In the order of the plan."""
    together: dict[tuple[str, str, int], list[Segment]] = {}
    for segment in made.segments:
        together.setdefault((segment.group, segment.kind, segment.steps[-1].number), []).append(segment)
    return [
        PhaseEnd(phase, step, tuple(_compared(found)), system, all(segment.is_watched for segment in found))
        for (system, phase, step), found in together.items()
    ]


def _compared(segments: Sequence[Segment]) -> Iterator[Ref]:
    branches = [segment.branch for segment in segments]
    yield from (segment.steps[-1].makes for segment in segments)
    teachers = (teacher.ref for segment in segments for teacher in segment.steps[-1].teachers)
    yield from dict.fromkeys(ref for ref in teachers if ref.branch not in branches)


class RunMonitor:
    """Measures one moment at a time."""

    def __init__(self, run: str, recipe: Recipe, queue: Queue, client: AsyncClient) -> None:
        self._run, self._recipe = run, recipe
        self._queue, self._client = queue, client
        self._task: asyncio.Task[None] | None = None
        self._agreed: dict[str, str] = {}
        self._asked: asyncio.Task[tuple[list[Exam], Decode]] | None = None

    @property
    def rhythm(self) -> tuple[int, ...]:
        """RLVR steps of the cycles that are decided; empty where the rhythm is fixed."""
        method = self._recipe.method
        return decided(self._agreed, method.rlvr_steps) if method.rhythm == "adaptive" else ()

    async def recall(self) -> None:
        """What was measured and decided so far; a queue that was emptied is told again."""
        there = await asyncio.to_thread(self._queue.agreed, self._run)
        for name in self._agreed.keys() - there.keys():
            await self._agree(name, self._agreed[name])
        self._agreed |= there

    def look(self, made: Plan, heads: Mapping[str, int]) -> bool:
        """Begins what can be measured now. Whether nothing is left to measure."""
        if self._asked is None:
            self._asked = asyncio.create_task(asyncio.to_thread(_questions, self._recipe))
        if self._asked.done():
            self._asked.result()  # questions that cannot be opened are told long before they are asked
        left = [moment for moment in phase_ends(made) if moment.name not in self._agreed and self._is_wanted(moment)]
        if self._task is not None:
            if not self._task.done():
                return False
            self._task.result()
            self._task = None
        ready = [moment for moment in left if all(is_there(ref, heads) for ref in moment.refs)]
        if ready:
            self._task = asyncio.create_task(self._measure(ready[0]))
        return not left

    async def close(self) -> None:
        for task in (self._task, self._asked):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])

    def _is_wanted(self, moment: PhaseEnd) -> bool:
        return self._is_compared(moment) or self._is_examined(moment)

    def _is_compared(self, moment: PhaseEnd) -> bool:
        is_asked = self._recipe.evaluation.overlap_prompts > 0 and moment.is_watched
        return is_asked and len(moment.refs) <= MOST_COMPARED

    def _is_examined(self, moment: PhaseEnd) -> bool:
        length = self._recipe.method.rlvr_steps + self._recipe.method.opd_steps
        every = self._recipe.evaluation.every
        return every > 0 and moment.step % (every * max(1, length)) == 0

    async def _measure(self, moment: PhaseEnd) -> None:
        try:
            if self._is_compared(moment):
                await self._compare(moment)
            if self._is_examined(moment):
                await self._examine(moment)
        except ServiceError as error:
            if not isinstance(error, RefusedError) or error.status is None:
                return  # it is away: again at the next look
            log.warning("%s %d was not measured: %s", moment.phase, moment.step, error)
        await self._agree(moment.name, "measured")

    async def _compare(self, moment: PhaseEnd) -> None:
        evaluation = self._recipe.evaluation
        asked, decode = await self._questions()
        found = await measure_overlap(
            self._client,
            [*map(str, moment.refs), BASE],
            {exam.name: _first(exam, evaluation.overlap_prompts) for exam in asked if _is_own(exam)},
            top_k=evaluation.overlap_top_k,
            seed=self._recipe.seed,
            max_tokens=self._recipe.rollout.max_completion_tokens,
            decode=decode,
        )
        warnings = list(alarms(found))
        for text in warnings:
            log.warning("%s", text)
        await self._tell("overlap", moment, **found.to_json(), alarms=warnings)
        await self._decide(moment, found)

    async def _decide(self, moment: PhaseEnd, found: Overlaps) -> None:
        """The rhythm of the next cycle, at the end of one."""
        method, branches = self._recipe.method, self._recipe.branches
        length = method.rlvr_steps + method.opd_steps
        cycle = moment.step // length
        if method.rhythm != "adaptive" or moment.step % length or cycle >= method.cycles:
            return
        revisions = {ref.branch: str(ref) for ref in moment.refs}
        lowest = lowest_overlap(found, revisions, edges(method, tuple(branches)), branches)
        steps = next_rlvr_steps(self.rhythm[cycle - 1], length, lowest)
        steps = int(await self._agree(decision(cycle), str(steps)))
        await self._tell("rhythm", moment, cycle=cycle, rlvr_steps=steps, opd_steps=length - steps, lowest=lowest)

    async def _examine(self, moment: PhaseEnd) -> None:
        asked, decode = await self._questions()
        models = [str(ref) for ref in moment.refs]
        with RewardPool(num_children=HALF_THE_CORES) as pool:
            items = await examine(
                self._client,
                pool,
                models,
                asked,
                seed=self._recipe.seed,
                max_tokens=self._recipe.rollout.max_completion_tokens,
                decode=decode,
            )
        found = exam_results(items, asked)
        rows = [(one.model, one.exam, one.way, one.accuracy) for one in found]
        rows += [(one.model, "mean", one.way, one.accuracy) for one in mean_results(found)]
        table = [
            {"model": model, "exam": exam, "way": way, "accuracy": accuracy.mean, "half_width": accuracy.half_width}
            for model, exam, way, accuracy in rows
        ]
        await self._tell("accuracy", moment, rows=table)

    async def _questions(self) -> tuple[list[Exam], Decode]:
        assert self._asked is not None
        return await self._asked

    async def _agree(self, name: str, value: str) -> str:
        self._agreed[name] = await asyncio.to_thread(self._queue.agree, self._run, name, value)
        return self._agreed[name]

    async def _tell(self, kind: str, moment: PhaseEnd, **what: Any) -> None:
        where = {"system": moment.system, "phase": moment.phase, "step": moment.step}
        await asyncio.to_thread(partial(self._queue.tell, self._run, kind, **where, **what))


def _questions(recipe: Recipe) -> tuple[list[Exam], Decode]:
    return exams(recipe), decoder(recipe)


def _is_own(exam: Exam) -> bool:
    """A capability's own questions, not those of a benchmark."""
    return exam.name == exam.capability


def _first(exam: Exam, count: int) -> list[Prompt]:
    return [exam.prompts[place] for place in range(min(count, len(exam.prompts)))]

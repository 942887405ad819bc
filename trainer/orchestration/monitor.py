"""What is measured while a run goes on: at every phase end how alike the branches are, every so often how good.

A phase end is a set of revisions that a plan makes together. When all of them are there it is measured, beside the run
and through the service; nothing waits for it but the next cycle of an adaptive rhythm, which is decided here. Results
are events of the run. Revisions that end a phase are never retired, so a phase end may be measured however late.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from adapters.names import BASE, Ref
from clients.client import AsyncClient, RefusedError, ServiceError
from trainer.evaluation.exams import Decode, Exam, capability_means, decoder, exam_results, examine, exams
from trainer.evaluation.overlap import Overlaps, alarms, lowest_shared, measure_overlap
from trainer.parts import Prompt
from trainer.plan.rhythm import decided, decision, next_rlvr_steps
from trainer.plan.steps import Plan, Segment, is_there
from trainer.queue.client import Queue
from trainer.recipe import Recipe, edges
from trainer.rewards.pool import HALF_THE_CORES, RewardPool

MOST_COMPARED = 8
"""Revisions of a phase end that are compared. Each one's answers are scored by all, so the cost grows with the square;
with more of them the phase end is not compared at all."""
_SEEN = "seen:"
"""Before the name of a phase end that is measured, beside the decisions that a run has agreed on."""

log = logging.getLogger("coordinator")


@dataclass(frozen=True, slots=True)
class PhaseEnd:
    """Revisions that end a phase together, and the teachers that are not among them: those of this phase, and those
    that their branches listen to next."""

    phase: str
    step: int
    refs: tuple[Ref, ...]
    system: str = ""
    is_watched: bool = True

    @property
    def name(self) -> str:
        return f"{_SEEN}{self.system}:{self.phase}:{self.step}"


def phase_ends(plan: Plan) -> list[PhaseEnd]:
    """The phase ends in the order of the plan."""
    groups: dict[tuple[str, str, int], list[Segment]] = {}
    for segment in plan.segments:
        groups.setdefault((segment.group, segment.kind, segment.steps[-1].number), []).append(segment)
    following = {(segment.branch, segment.first): segment for segment in plan.segments}
    ends: list[PhaseEnd] = []
    for (system, phase, step), segments in groups.items():
        refs = [segment.steps[-1].makes for segment in segments]
        # Teachers that train meanwhile are there already, as newer revisions; those that stand still come once each.
        branches = {ref.branch for ref in refs}
        teachers = (teacher.ref for segment in segments for teacher in segment.steps[-1].teachers)
        refs += dict.fromkeys(ref for ref in teachers if ref.branch not in branches)
        # How alike a student and a frozen teacher are is asked before the first lesson. Live ones are there already.
        next_segments = (following.get((ref.branch, ref.revision or 0)) for ref in tuple(refs))
        next_teachers = [teacher.ref for segment in next_segments if segment for teacher in segment.steps[0].teachers]
        refs += dict.fromkeys(ref for ref in next_teachers if ref not in refs)
        ends.append(PhaseEnd(phase, step, tuple(refs), system, all(segment.is_watched for segment in segments)))
    return ends


class RunMonitor:
    """Measures one phase end at a time: the service is the run's, which should not wait for measuring."""

    def __init__(self, run: str, recipe: Recipe, queue: Queue, client: AsyncClient) -> None:
        self._run, self._recipe = run, recipe
        self._queue, self._client = queue, client
        self._task: asyncio.Task[None] | None = None
        self._agreed: dict[str, str] = {}
        self._questions: asyncio.Task[tuple[list[Exam], Decode]] | None = None

    @property
    def rhythm(self) -> tuple[int, ...]:
        """RLVR steps of the cycles that are decided; empty where the rhythm is fixed."""
        method = self._recipe.method
        return decided(self._agreed, method.rlvr_steps) if method.rhythm == "adaptive" else ()

    async def recall(self) -> None:
        """Reads what was measured and decided so far; a queue that was emptied is told again."""
        agreed = await asyncio.to_thread(self._queue.agreed, self._run)
        for name in self._agreed.keys() - agreed.keys():
            await self._agree(name, self._agreed[name])
        self._agreed |= agreed

    def look(self, plan: Plan, heads: Mapping[str, int]) -> bool:
        """Begins what can be measured now. Whether nothing is left to measure."""
        if self._questions is None:
            # In a thread and before they are needed: data sets may take minutes to open.
            opened = asyncio.to_thread(lambda: (exams(self._recipe), decoder(self._recipe)))
            self._questions = asyncio.create_task(opened)
        if self._questions.done():
            self._questions.result()  # questions that cannot be opened are told long before they are asked
        left = [
            end
            for end in phase_ends(plan)
            if end.name not in self._agreed and (self._is_compared(end) or self._is_examined(end))
        ]
        if self._task is not None:
            if not self._task.done():
                return False
            self._task.result()
            self._task = None
        ready = [end for end in left if all(is_there(ref, heads) for ref in end.refs)]
        if ready:
            self._task = asyncio.create_task(self._measure(ready[0]))
        return not left

    async def close(self) -> None:
        for task in (self._task, self._questions):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait([task])

    def _is_compared(self, phase_end: PhaseEnd) -> bool:
        is_wanted = self._recipe.evaluation.overlap_prompts > 0 and phase_end.is_watched
        return is_wanted and len(phase_end.refs) <= MOST_COMPARED

    def _is_examined(self, phase_end: PhaseEnd) -> bool:
        # Systems without cycles have segments that are as long as one.
        length = self._recipe.method.rlvr_steps + self._recipe.method.opd_steps
        every = self._recipe.evaluation.every
        return every > 0 and phase_end.step % (every * max(1, length)) == 0

    async def _measure(self, phase_end: PhaseEnd) -> None:
        try:
            if self._is_compared(phase_end):
                await self._compare(phase_end)
            if self._is_examined(phase_end):
                await self._examine(phase_end)
        except ServiceError as error:
            if not isinstance(error, RefusedError) or error.status is None:
                return  # it is away: again at the next look
            # What is refused would be refused again, and a run must not end for a measurement: it goes without.
            log.warning("%s %d was not measured: %s", phase_end.phase, phase_end.step, error)
        await self._agree(phase_end.name, "measured")

    async def _compare(self, phase_end: PhaseEnd) -> None:
        evaluation = self._recipe.evaluation
        assert self._questions is not None
        all_exams, decode = await self._questions
        # Of a capability's own questions: a benchmark's are for the exam alone.
        own_exams = [exam for exam in all_exams if exam.name == exam.capability]
        overlaps = await measure_overlap(
            self._client,
            [*map(str, phase_end.refs), BASE],
            {exam.name: first_prompts(exam, evaluation.overlap_prompts) for exam in own_exams},
            top_k=evaluation.overlap_top_k,
            seed=self._recipe.seed,
            max_tokens=self._recipe.rollout.max_completion_tokens,
            decode=decode,
        )
        warnings = list(alarms(overlaps))
        for text in warnings:
            log.warning("%s", text)
        await self._tell("overlap", phase_end, **overlaps.to_json(), alarms=warnings)
        await self._decide(phase_end, overlaps)

    async def _decide(self, phase_end: PhaseEnd, overlaps: Overlaps) -> None:
        """Decides the rhythm of the next cycle, at the end of one."""
        method, branches = self._recipe.method, self._recipe.branches
        length = method.rlvr_steps + method.opd_steps
        cycle = phase_end.step // length
        if method.rhythm != "adaptive" or phase_end.step % length or cycle >= method.cycles:
            return
        revisions = {ref.branch: str(ref) for ref in phase_end.refs}
        lowest = lowest_shared(overlaps, revisions, edges(method, tuple(branches)), branches)
        steps = next_rlvr_steps(self.rhythm[cycle - 1], length, lowest)
        # What was agreed, not what was measured here: a coordinator that died after agreeing may have measured it
        # otherwise, and workers go by the first answer.
        steps = int(await self._agree(decision(cycle), str(steps)))
        await self._tell("rhythm", phase_end, cycle=cycle, rlvr_steps=steps, opd_steps=length - steps, lowest=lowest)

    async def _examine(self, phase_end: PhaseEnd) -> None:
        assert self._questions is not None
        all_exams, decode = await self._questions
        models = [str(ref) for ref in phase_end.refs]
        with RewardPool(num_children=HALF_THE_CORES) as pool:
            items = await examine(
                self._client,
                pool,
                models,
                all_exams,
                seed=self._recipe.seed,
                max_tokens=self._recipe.rollout.max_completion_tokens,
                decode=decode,
            )
        results = exam_results(items, all_exams)
        rows = [(result.model, result.exam, result.way, result.accuracy) for result in results]
        rows += [(mean.model, "mean", mean.way, mean.accuracy) for mean in capability_means(results)]
        table = [
            {"model": model, "exam": exam, "way": way, "accuracy": accuracy.mean, "half_width": accuracy.half_width}
            for model, exam, way, accuracy in rows
        ]
        await self._tell("accuracy", phase_end, rows=table)

    async def _agree(self, name: str, value: str) -> str:
        self._agreed[name] = await asyncio.to_thread(self._queue.agree, self._run, name, value)
        return self._agreed[name]

    async def _tell(self, kind: str, phase_end: PhaseEnd, **fields: Any) -> None:
        end = {"system": phase_end.system, "phase": phase_end.phase, "step": phase_end.step}
        await asyncio.to_thread(partial(self._queue.tell, self._run, kind, **end, **fields))


def first_prompts(exam: Exam, count: int) -> list[Prompt]:
    # By index: prompts are opened one by one, and a slice of all would open all.
    return [exam.prompts[index] for index in range(min(count, len(exam.prompts)))]

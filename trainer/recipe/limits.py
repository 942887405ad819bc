"""Limits that follow from a recipe: how much is under way at once, how long it may take, how large it may get.

    lengths, groups, branches, prefetch, and one number about the machine (`budget.tokens_per_s`)
        -> the service's settings (`serving`), the client's patience, what plan, check and doctor say

All of it is counted with the longest prompts and completions, so a run that keeps within its recipe meets none of these
limits. Each has a floor, the default of a service without a recipe: a small recipe changes nothing.

Left out: memory of the card (`trainer.doctor.memory`), and the steps of a plan (`trainer.plan.bounds`).
"""

import math
from dataclasses import dataclass
from typing import TypedDict

from clients.calls import prompts_together
from service.settings import Settings
from trainer.recipe import Recipe

MAX_IN_FLIGHT = 64
"""Calls that one worker has under way at each core of the engine: twice what fills one of 256 sequences with groups of
8."""
READ_RATE = 5
"""Tokens that are read in the time of one that is sampled: prompts, and completions that are scored. A card reads ten
times as fast or more; with less there is something to spare."""
TOKEN_BYTES = 8
"""A token in a request, as text or as a number with its comma, rounded up."""
_NUMBER_BYTES = 4
"""An id or a log-probability in an array."""
_TEXT_BYTES = 5
"""A token as text in a record; four in English."""
_REQUEST_MARGIN = 4
"""A body may be so many times what a recipe's own requests have: other callers' are of another form."""
_SLACK_S = 60.0
"""For what takes time beside the engine: reading and writing of bodies, media that are sent on the way."""
_MOST_SCORES, _MOST_MEDIA = 2**30, 2 * 2**30
"""The most that the service keeps of scores and of decoded media. Both save work that is asked for twice; neither is
worth the memory of a host."""
_DEFAULTS = Settings()
MIB, GIB = 2**20, 2**30


class ClientLimits(TypedDict):
    """Arguments of a client of the service."""

    engine_s: float
    max_in_flight: int


@dataclass(frozen=True, slots=True)
class Limits:
    sampled: int
    """Tokens of the completions that one call asks for."""
    call_tokens: int
    """Tokens that the largest call is counted with: of one prompt's samples, or of its scores by two models."""
    call_s: float
    """The engine's time for it, if it had nothing else to do."""
    in_flight: int
    """Calls that one worker has under way."""
    calls: int
    """Calls under way, of all workers."""
    admitted_requests: int
    admitted_tokens: int
    waiting: int
    request_s: float
    wait_s: float
    patience_s: float
    """A client's time for a call, from when it gets its place."""
    body_bytes: int
    record_bytes: int
    """The record of a step's rollouts."""
    batch_bytes: int
    """The arrays of the steps that a worker has in hand."""
    scores_bytes: int
    media_bytes: int

    @property
    def of_client(self) -> ClientLimits:
        return {"engine_s": self.patience_s, "max_in_flight": self.in_flight}


def limits(recipe: Recipe) -> Limits:
    rollout, engine, branches = recipe.rollout, recipe.engine, len(recipe.branches)
    prompt, completion = rollout.max_prompt_tokens, rollout.max_completion_tokens
    (_, opd_group), group = rollout.opd_batch, rollout.group_size
    rate = recipe.budget.tokens_per_s
    seats = engine.max_num_seqs * engine.data_parallel

    # One call samples a group; of short ones several, as the client sends them together.
    together = prompts_together(group, completion)
    sampled = together * group * completion
    # One call scores a group by student and teacher; or, for the overlap, one completion by all branches and the base.
    scored = max(2 * opd_group, branches + 1) * (prompt + completion)
    call_tokens = max(together * prompt + sampled, scored)
    call_s = max(sampled + together * prompt / READ_RATE, scored / READ_RATE) / rate

    workers = branches  # at most: a worker has one branch at least
    in_flight = MAX_IN_FLIGHT * engine.data_parallel
    calls = workers * in_flight
    # Twice what fills the engine, so that the next are there when some end.
    filling = math.ceil(2 * seats / (together * group))
    admitted_tokens = max(_DEFAULTS.max_tokens, filling * (together * prompt + sampled), 2 * scored)
    # What is admitted before it goes first; then it shares the engine with as many sequences as there is room for.
    share_s = min(seats, calls * together * group) * completion / rate
    request_s = max(_DEFAULTS.request_timeout_s, min(admitted_tokens / rate, calls * call_s) + share_s)
    # All others come first.
    wait_s = max(_DEFAULTS.max_wait_s, calls * call_s)
    completions = max(rollout.prompts * group, math.prod(rollout.opd_batch))
    # One part for the rewards and one for each teacher: as many as there are branches, in every system.
    step_bytes = branches * part_bytes(recipe, completions)
    # For the overlap all branches tell their likeliest tokens, whatever a teacher's signal is.
    scored_bytes = _NUMBER_BYTES * (1 + 2 * max(_top_k(recipe), recipe.evaluation.overlap_top_k))
    return Limits(
        sampled=sampled,
        call_tokens=call_tokens,
        call_s=call_s,
        in_flight=in_flight,
        calls=calls,
        admitted_requests=max(_DEFAULTS.max_requests, filling),
        admitted_tokens=admitted_tokens,
        waiting=max(_DEFAULTS.max_waiting, 2 * calls),
        request_s=math.ceil(request_s),
        wait_s=math.ceil(wait_s),
        patience_s=math.ceil(request_s + wait_s + _SLACK_S),
        body_bytes=max(_DEFAULTS.body_bytes, _REQUEST_MARGIN * TOKEN_BYTES * call_tokens),
        record_bytes=max(_DEFAULTS.record_bytes, step_bytes),
        # Ids are twice as wide there.
        batch_bytes=(1 + recipe.budget.prefetch) * step_bytes * 5 // 4,
        scores_bytes=_within(64 * MIB, calls * 2 * opd_group * completion * scored_bytes, _MOST_SCORES),
        media_bytes=_within(256 * MIB, calls * together * _pixels(recipe) * 3, _MOST_MEDIA),
    )


def part_bytes(recipe: Recipe, completions: int) -> int:
    """The most that a record has of so many completions and their prompts."""
    rollout = recipe.rollout
    # By the smaller group: as many prompts as there may be.
    prompts = math.ceil(completions / min(rollout.group_size, rollout.opd_batch[1]))
    of_prompts = prompts * rollout.max_prompt_tokens * (_NUMBER_BYTES + _TEXT_BYTES)
    # A token: id, log-probability, advantage, delta and text; and a teacher's likeliest tokens.
    token_bytes = 4 * _NUMBER_BYTES + _TEXT_BYTES + 2 * _NUMBER_BYTES * _top_k(recipe)
    return of_prompts + completions * rollout.max_completion_tokens * token_bytes


def _top_k(recipe: Recipe) -> int:
    return recipe.loss.teacher_top_k if recipe.loss.teacher_signal == "top-k" else 0


def _pixels(recipe: Recipe) -> int:
    """Pixels of one prompt's media, decoded. A prompt has images or a video, hardly ever both."""
    media = recipe.media
    return max(media.max_images * media.image_max_pixels, media.max_videos * media.max_frames * media.video_max_pixels)


def _within(least: int, value: int, most: int) -> int:
    return min(max(least, value), most)


def limit_lines(recipe: Recipe) -> list[str]:
    """A table in Markdown: each limit, its value, and what it follows from."""
    derived, rollout, engine = limits(recipe), recipe.rollout, recipe.engine
    group = f"{rollout.group_size} x {rollout.max_completion_tokens:,}"
    rows = (
        (
            "one call",
            f"{derived.call_tokens:,} tokens",
            f"a prompt's {group} completions, or their scores by two models",
        ),
        (
            "",
            _time(derived.call_s),
            f"at budget.tokens_per_s = {recipe.budget.tokens_per_s:g}, the engine's whole time",
        ),
        ("calls under way", f"{derived.calls}", f"{derived.in_flight} of each worker, a worker for each branch"),
        (
            "admitted",
            f"{derived.admitted_tokens:,} tokens",
            f"twice what fills engine.max_num_seqs = {engine.max_num_seqs}"
            + (f" in each of {engine.data_parallel} cores" if engine.data_parallel > 1 else ""),
        ),
        ("", f"{derived.admitted_requests} requests", ""),
        ("waiting", f"{derived.waiting} requests", "twice the calls under way; one more is answered 429"),
        ("wait for admission", _time(derived.wait_s), "all calls that may be before it"),
        ("one request", _time(derived.request_s), "what was admitted before it, and its own in a full engine"),
        ("a client's patience", _time(derived.patience_s), "both, from when the call gets its place"),
        (
            "a step",
            _time(recipe.budget.step_hours * 3600),
            "budget.step_hours; then it has failed, and costs an attempt",
        ),
        ("body of a request", _bytes(derived.body_bytes), "four times the largest call"),
        ("record of a step", _bytes(derived.record_bytes), "every token's numbers, a part for each teacher"),
        ("a worker's batches", _bytes(derived.batch_bytes), "the steps that it has in hand, in the host's memory"),
        ("kept scores", _bytes(derived.scores_bytes), "those of the calls under way, 1 GiB at most"),
        ("kept media", _bytes(derived.media_bytes), "decoded, those of the calls under way, 2 GiB at most"),
    )
    return ["| limit | value | from |", "| --- | --- | --- |", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _bytes(count: int) -> str:
    return f"{count / MIB:.0f} MiB" if count < GIB else f"{count / GIB:.1f} GiB"

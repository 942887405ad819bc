"""What a person can get wrong about a recipe and its data, told before an engine starts: all of it in one list.

Data sets are opened as a worker opens them, so what it would say is said here. Of each a few rows are looked at in
depth: their media are decoded, and their own answers are judged, which must be right. Left out: what a training step
alone can show, such as a base that never earns a reward.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from adapters.errors import UserError
from service.media import Limits, MediaError, Sampling, decode_image, decode_video
from trainer.data.base import base_of
from trainer.data.datasets import PromptSet
from trainer.data.held_out import held_out_prompts, open_benchmark, training_prompts
from trainer.data.lengths import within
from trainer.data.prompts import Prompts
from trainer.doctor import memory
from trainer.doctor.fit import dtype_rows, memory_rows, parts_of, served_row, shape_in, store_row, stored_bytes
from trainer.doctor.machine import Card, MachineFact, Status, found_cards, queue_row
from trainer.evaluation.exams import answer_rule
from trainer.local.bounds import bound_facts
from trainer.parts import Prompt
from trainer.plan.make import make_plan
from trainer.recipe import CapabilityConfig, Data, DatasetData, Recipe, RewardConfig
from trainer.rewards import RewardItem, Rule, Scored, judge, load
from trainer.rewards.pool import RewardPool
from trainer.rewards.reasoning import right_answer

_DEPTH = 16
"""Rows that are looked at in depth, spread over a data set. A video takes up to a second to decode, so more would keep
a person waiting; fewer miss what is wrong in a tenth of the rows."""
_MEASURED = 1000
"""Prompts whose tokens are counted, spread over a data set: about a second. All are, when training begins."""
_ENOUGH_TO_SHARE = 10_000
"""Rows of which some can be held out for sure. Of fewer it is tried, which opens them a second time."""
_HARMLESS = frozenset({"choice", "numeric", "exact"})
"""Rewards that are arithmetic on short texts: they are asked here. The others may hang, and have a process for it."""


_TASK = "reasoning-gym"
"""The reward whose answers are whole entries: what is right stands in them."""
_SHOWN = 60
"""Characters of an answer in a line for a person, which has room for no solution."""


@dataclass(frozen=True, slots=True)
class DataSource:
    """Prompts of the recipe, and what judges their answers."""

    path: str
    """The key of the recipe that names them."""
    data: Data
    open: Callable[[], Prompts]
    reward_path: str
    reward: RewardConfig


def preflight(recipe: Recipe, out: Path) -> list[MachineFact]:
    """Everything that is looked at before a run in the folder `out`; what fails ends it before it begins."""
    return [queue_row(), *_base_facts(recipe, out), *_data_facts(recipe, list(_sources(recipe)))]


def capability_facts(recipe: Recipe, name: str) -> list[MachineFact]:
    """The same of a capability's training data and reward alone: for what asks a service that runs elsewhere."""
    path = f"capabilities.{name}.data"
    return _data_facts(recipe, [source for source in _sources(recipe) if source.path == path])


# ---- data ----


def _data_facts(recipe: Recipe, sources: Sequence[DataSource]) -> list[MachineFact]:
    with closing(RewardPool(num_children=1)) as pool:
        # First, for its server takes a second to load, in which data sets are opened.
        if not {source.reward.kind for source in sources} <= _HARMLESS:
            pool.start()
        tokenizer = _tokenizer(recipe)
        return [fact for source in sources for fact in _source_facts(recipe, source, pool, tokenizer)]


def column_facts(recipe: Recipe) -> Iterator[MachineFact]:
    """What is wrong with the first rows of data sets that lie here: quick, whatever their size."""
    limits = Limits()
    for path, data in recipe.data.items():
        # What the hub has might have to be fetched first, which nobody asked for.
        if isinstance(data, DatasetData) and not _may_be_on_the_hub(data.name):
            few = data.model_copy(update={"limit": min(_DEPTH, data.limit or _DEPTH)})
            try:
                open_benchmark(path.split(".")[1], few, None, limits=limits)
            except UserError as error:
                yield _failure(path, error)


def _may_be_on_the_hub(name: str) -> bool:
    path = Path(name).expanduser()
    return not (path.exists() or path.suffix or name.startswith(("/", ".", "~")))


def _sources(recipe: Recipe) -> Iterator[DataSource]:
    """Everything that is trained on or measured with. Of generated questions a few: none of them is wrong."""
    limits, questions = Limits(), recipe.evaluation.questions
    for name, capability in recipe.capabilities.items():
        path = f"capabilities.{name}"
        few = capability.model_copy(update={"data": _shortened(capability.data)})
        yield DataSource(
            f"{path}.data",
            capability.data,
            lambda name=name, few=few: _trained_on(name, few, questions, recipe.seed, limits),
            f"{path}.reward",
            capability.reward,
        )
        if isinstance(capability.held_out, DatasetData):
            yield DataSource(
                f"{path}.held_out",
                capability.held_out,
                lambda name=name, few=few: held_out_prompts(name, few, questions, limits=limits),
                f"{path}.reward",
                capability.reward,
            )
    for name, benchmark in recipe.evaluation.sets.items():
        data = _shortened(benchmark.data)
        yield DataSource(
            f"evaluation.sets.{name}.data",
            data,
            lambda name=name, data=data: open_benchmark(name, data, None, limits=limits),
            f"evaluation.sets.{name}.reward",
            benchmark.reward,
        )


def _shortened(data: Data) -> Data:
    return data.model_copy(update={"size": min(data.size, _DEPTH)}) if not isinstance(data, DatasetData) else data


def _trained_on(name: str, capability: CapabilityConfig, questions: int, seed: int, limits: Limits) -> Prompts:
    prompts = training_prompts(name, capability, questions, seed=seed, limits=limits)
    if isinstance(prompts, PromptSet) and capability.held_out is None and len(prompts) < _ENOUGH_TO_SHARE:
        held_out_prompts(name, capability, questions, limits=limits)  # an error where they are too few
    return prompts


def _source_facts(recipe: Recipe, source: DataSource, pool: RewardPool, tokenizer: Any) -> Iterator[MachineFact]:
    """What there is to say of one source; one that fails hides no other."""
    try:
        prompts = source.open()
    except UserError as error:
        yield _failure(source.path, error)
        # What is wrong with the reward itself needs no data to be seen.
        with suppress(UserError):
            yield from _reward_facts(source, [], pool)
        return
    rows, broken = _looked_at(prompts)
    yield from (MachineFact("FAIL", source.path, words, "replace or remove it") for words in broken)
    if not broken:
        finding = f"{len(prompts):,} rows" if isinstance(prompts, PromptSet) else "generated questions"
        yield MachineFact("OK", source.path, finding)
    if isinstance(prompts, PromptSet):
        for reason, count in prompts.dropped.most_common():
            yield MachineFact("WARN", source.path, f"{count} rows are left out: {reason}", "mend or remove them")
        if tokenizer is not None:
            yield from _length_facts(recipe, source.path, prompts, tokenizer)
    yield from _reward_facts(source, rows, pool)


def _spread(count: int, most: int) -> list[int]:
    """At most so many indices, evenly spread, the first among them."""
    return [index * count // min(count, most) for index in range(min(count, most))]


def _looked_at(prompts: Prompts) -> tuple[list[tuple[str, Prompt]], list[str]]:
    """Some prompts with their rows' names, their media decoded; and what is wrong with others."""
    sound: list[tuple[str, Prompt]] = []
    broken: list[str] = []
    for index in _spread(len(prompts), _DEPTH):
        label = prompts.label(index) if isinstance(prompts, PromptSet) else f"question {index + 1}"
        try:
            prompt = prompts[index]
            for image in prompt.images:
                decode_image(image, Limits())
            for video in prompt.videos:
                decode_video(video, Limits(), Sampling(max_frames=2))  # the first frame, and the last after all others
        except MediaError as error:
            broken.append(f"{label}: {error}")
        except UserError as error:  # the set names the row itself
            broken.append(str(error))
        else:
            sound.append((label, prompt))
    return sound, broken


def _length_facts(recipe: Recipe, path: str, prompts: PromptSet, tokenizer: Any) -> Iterator[MachineFact]:
    some = prompts.select(_spread(len(prompts), _MEASURED))
    most = recipe.rollout.max_prompt_tokens
    try:
        short = within(some, path.split(".")[1], tokenizer, recipe.media, most)
    except UserError as error:
        yield _failure(path, error)
        return
    for reason, count in sorted((short.dropped - some.dropped).items()):
        finding = f"{count:,} of {len(some):,} prompts looked at are left out: {reason}"
        yield MachineFact("WARN", path, finding, "raise that, or shorten them")


def _tokenizer(recipe: Recipe) -> Any:
    """The base's tokenizer, where a data set's prompts are to be measured with it; None without a base."""
    if not any(isinstance(data, DatasetData) for data in recipe.data.values()):
        return None
    with suppress(UserError):  # told with the base
        folder = base_of(recipe)
        from transformers import AutoTokenizer  # a slow import that generated questions do without

        return AutoTokenizer.from_pretrained(folder)
    return None


# ---- rewards ----


def _reward_facts(source: DataSource, rows: Sequence[tuple[str, Prompt]], pool: RewardPool) -> Iterator[MachineFact]:
    """Whether the rows' own answers are right by their reward, in a box or bare."""
    reward = source.reward
    # Without the share for the form: being right is asked here.
    rule = answer_rule(reward)
    try:
        pairs = _scored_pairs([prompt.answer for _, prompt in rows], rule, reward.deadline_s, pool)
    except UserError as error:
        yield _failure(source.reward_path, error)
        return
    if not rows:
        return
    verdicts = [
        (label, _why_not_right(prompt.answer, rule.kind, pair))
        for (label, prompt), pair in zip(rows, pairs, strict=True)
    ]
    wrong = [f"{label}: {why}" for label, why in verdicts if why]
    if wrong:
        more = f" (and {len(wrong) - 1} more of {len(rows)} rows looked at)" if len(wrong) > 1 else ""
        remedy = "mend the function" if ":" in reward.kind else "take another reward.kind, or mend the answers"
        # Rows that cannot be used may be left out, if the recipe says so; not all of them.
        may_drop = isinstance(source.data, DatasetData) and source.data.on_unreadable == "drop"
        status: Status = "WARN" if may_drop and len(wrong) < len(rows) else "FAIL"
        yield MachineFact(status, source.reward_path, f"{wrong[0]}{more}", remedy)
    elif not any(score.value for pair in pairs for score in pair):
        finding = f"{reward.kind} gives 0 to the rows' own answers"
        yield MachineFact("WARN", source.reward_path, finding, "right, if a completion looks otherwise")
    else:
        yield MachineFact("OK", source.reward_path, f"{reward.kind}, tried on {len(rows)} answers")


def _scored_pairs(answers: Sequence[str], rule: Rule, deadline_s: float, pool: RewardPool) -> list[list[Scored]]:
    """The scores of each answer, given in a box and bare."""
    shown = [right_answer(answer) if rule.kind == _TASK else answer for answer in answers]
    items = [
        RewardItem(form.format(text), answer)
        for text, answer in zip(shown, answers, strict=True)
        for form in (r"\boxed{{{}}}", "{}")
    ]
    scored = _scored(items, rule, deadline_s, pool)
    return [scored[number : number + 2] for number in range(0, len(scored), 2)]


def _why_not_right(answer: str, kind: str, pair: Sequence[Scored]) -> str:
    """Why an answer is not right by its own reward; empty if it is, or may be."""
    is_own = ":" in kind
    reasons = [score.why or "" for score in pair if score.value is None]
    # A reward of one's own must judge whatever a model writes; of the others either form will do.
    if reasons and (is_own or len(reasons) == len(pair)):
        return reasons[0]
    # What one's own takes as right is its own affair, and a task may show no answer.
    if is_own or kind == _TASK or any(score.value for score in pair):
        return ""
    shown = answer if len(answer) <= _SHOWN else f"{answer[: _SHOWN - 3]}..."
    return f"the answer {shown!r} is not right by reward {kind}"


def _scored(items: Sequence[RewardItem], rule: Rule, deadline_s: float, pool: RewardPool) -> list[Scored]:
    if rule.kind in _HARMLESS:
        scorer = load(rule)
        return [judge(scorer, item) for item in items]
    pool.check(rule, deadline_s)
    with _silenced("trainer.rewards.pool"):  # it would warn of what is told here
        return pool.score(items, rule, deadline_s)


@contextmanager
def _silenced(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    before, _ = logger.level, logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# ---- base, memory, disk ----


def _base_facts(recipe: Recipe, out: Path) -> Iterator[MachineFact]:
    shape = memory.KNOWN_SHAPES.get(recipe.base.name)
    try:
        folder = base_of(recipe)
        shape = shape or shape_in(folder)
        yield MachineFact("OK", "base", str(folder))
    except UserError as error:
        yield _failure("base.name", error)
    if shape is None:
        return
    cards = found_cards()
    parts = parts_of(recipe, shape, on_gpu=bool(cards))
    if cards:
        yield from memory_rows(recipe, shape, parts, cards)
    else:
        yield from _host_facts(recipe, shape, parts)
    yield from dtype_rows(recipe, cards)
    plan = make_plan(recipe)
    most = stored_bytes(recipe, shape, branches=len(plan.starts), phase_ends=plan.phase_ends)
    # Of a run that goes on, a part is there.
    there = sum(file.stat().st_size for file in (out / "store").rglob("*") if file.is_file())
    yield store_row(max(0, most - there), out, if_short="FAIL")
    yield from bound_facts(plan, recipe, out / "runs", if_short="FAIL")
    yield served_row(recipe, shape)


def _host_facts(recipe: Recipe, shape: memory.Shape, parts: Sequence[memory.MemoryPart]) -> Iterator[MachineFact]:
    """What can never fit fails. What fits once other programs end is a warning: they may."""
    host = psutil.virtual_memory()
    never = list(memory_rows(recipe, shape, parts, [Card("this machine's memory", host.total)]))
    if any(fact.status == "FAIL" for fact in never):
        yield from never
        return
    for fact in memory_rows(recipe, shape, parts, [Card("this machine's free memory", host.available)]):
        if fact.status == "FAIL":
            yield MachineFact("WARN", fact.subject, fact.finding, f"end other programs, or {fact.remedy}")
        else:
            yield fact


def _failure(path: str, error: UserError) -> MachineFact:
    # Some of the errors begin with the key already.
    return MachineFact("FAIL", path, str(error).removeprefix(f"{path}: "))

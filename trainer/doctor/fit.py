"""Whether a recipe fits the memory and the disk of a machine, and which of its numbers to lower if not.

The machine is looked at in `machine`, the arithmetic is in `memory`; here they meet the recipe.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from adapters.errors import UserError
from trainer.doctor import lowering, memory
from trainer.doctor.cards import ONE_CARD, Spread
from trainer.doctor.machine import CPUINFO, Card, MachineFact, Status, free_bytes, gib, has_fast_bfloat16
from trainer.recipe import Recipe


def shape_in(base: Path) -> memory.Shape:
    """The shape of the base in this folder."""
    config = base / "config.json"
    try:
        return memory.shape_of(json.loads(config.read_text()))
    except UserError as error:
        raise UserError(f"{config}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{config}: cannot be read as the config of a base ({error!r}); set base.name to one") from None


def parts_of(
    recipe: Recipe, shape: memory.Shape, *, on_gpu: bool, spread: Spread = ONE_CARD
) -> tuple[memory.MemoryPart, ...]:
    """What the service and one worker with all branches take, of each card that they have."""
    engine, rollout = recipe.engine, recipe.rollout
    service = memory.service_parts(
        shape,
        element=_element(recipe.served_dtype, on_gpu=on_gpu),
        slots=engine.max_loras,
        slot_rank=recipe.max_lora_rank,
        kv_cache_gib=engine.kv_cache_gib,
        batched_tokens=engine.max_num_batched_tokens,
        sequences=min(engine.max_num_seqs, rollout.prompts * rollout.group_size),
        on_gpu=on_gpu,
        tensor_parallel=engine.tensor_parallel,
    )
    worker = memory.worker_parts(
        shape,
        element=_element(recipe.base.dtype, on_gpu=on_gpu),
        rank=recipe.lora.rank,
        branches=-(-len(recipe.branches) // spread.workers),
        tokens=recipe.budget.tokens_per_micro_batch,
        on_gpu=on_gpu,
        modules=recipe.lora.modules,
        shards=spread.shards,
    )
    # Without cards all of the engine is in the host's memory.
    copies = 1 if on_gpu else engine.data_parallel * engine.tensor_parallel
    return (*(replace(part, bytes=copies * part.bytes) for part in service), *worker)


def memory_rows(
    recipe: Recipe,
    shape: memory.Shape,
    parts: Sequence[memory.MemoryPart],
    cards: Sequence[Card],
    spread: Spread = ONE_CARD,
) -> Iterator[MachineFact]:
    """Whether service and worker fit, on one card (or in the host's memory) together, on several each on its own."""
    service_knobs, worker_knobs = _knobs(recipe, shape)
    if len(cards) > 1 or not spread.is_shared:  # the engine has the first for itself
        service = [part for part in parts if part.process == "service"]
        worker = [part for part in parts if part.process == "worker"]
        yield fit_row("service fits", memory.total(service), cards[0], service_knobs)
        yield fit_row("worker fits", memory.total(worker), cards[-1], worker_knobs)
    else:
        knobs = lowering.shared_knobs([*service_knobs, *worker_knobs])
        yield fit_row("recipe fits", memory.total(parts), cards[0], knobs)
    # Of each branch a revision that is served and one that arrives; and two more.
    wanted = 2 * len(recipe.branches) + 2
    if recipe.engine.max_loras < wanted:
        finding = f"{recipe.engine.max_loras} for {len(recipe.branches)} branches"
        remedy = f"publishing waits for scoring; set engine.max_loras = {wanted}"
        yield MachineFact("WARN", "adapter slots", finding, remedy)


def dtype_rows(recipe: Recipe, cards: Sequence[Card]) -> Iterator[MachineFact]:
    """A warning where a dtype is one that the processor computes many times slower than float32."""
    if cards or not CPUINFO.exists() or has_fast_bfloat16():
        return
    # 288 s for an update that takes 8 s in float32.
    finding = "bfloat16, which this processor computes thirty times slower than float32"
    for key, dtype in (("base.dtype", recipe.base.dtype), ("engine.dtype", recipe.engine.dtype)):
        if dtype == "bfloat16":  # `base`, the engine's default, is told once
            yield MachineFact("WARN", key, finding, f'set {key} = "float32"')


def served_row(recipe: Recipe, shape: memory.Shape) -> MachineFact:
    """Whether the served copies of the adapters have room."""
    # An upper bound: as many again as there are slots, two bytes a parameter.
    served = 2 * recipe.engine.max_loras * memory.lora_parameters(shape, recipe.lora.rank, recipe.lora.modules) * 2
    cache = Path(recipe.engine.adapter_cache)
    return room_row("served adapters", served, cache, "set engine.adapter_cache to a larger place")


def stored_bytes(recipe: Recipe, shape: memory.Shape, *, branches: int, phase_ends: int) -> int:
    """The most that a run's revisions take, with so many ends of phases in each branch."""
    adapter = memory.lora_parameters(shape, recipe.lora.rank, recipe.lora.modules)
    keep_last = recipe.budget.keep_last
    return memory.store_bytes(adapter, branches=branches, keep_last=keep_last, phase_ends=phase_ends)


def store_row(need: int, store: Path, *, if_short: Status = "WARN") -> MachineFact:
    """Whether the revisions of a run have room."""
    remedy = "make room, keep the store elsewhere, or lower method.cycles or budget.keep_last"
    return room_row("disk for the run", need, store, remedy, if_short=if_short)


def room_row(subject: str, need: int, folder: Path, remedy: str, *, if_short: Status = "WARN") -> MachineFact:
    free = free_bytes(folder)
    finding = f"at most {gib(need)} GiB, {gib(free)} GiB free at {folder}"
    return MachineFact("OK", subject, finding) if need <= free else MachineFact(if_short, subject, finding, remedy)


def fit_row(subject: str, need: int, card: Card, knobs: Sequence[lowering.Knob]) -> MachineFact:
    """Whether it fits with something to spare, and which number to lower if not."""
    finding = f"{gib(need)} GiB of {gib(card.bytes)} ({card.name})"
    too_much = need + memory.SPARE - card.bytes
    if too_much <= 0:
        return MachineFact("OK", subject, finding)
    lowered, left = lowering.lower(too_much, knobs)
    steps = " and ".join(f"{knob.path} from {knob.now:g} to {knob.to:g}" for knob in lowered)
    if left:
        remedy = f"even with {steps} it is {gib(left)} GiB too large; take a smaller base.name or one more card"
        return MachineFact("FAIL", subject, finding, remedy)
    return MachineFact("FAIL", subject, finding, f"lower {steps}")


def _knobs(recipe: Recipe, shape: memory.Shape) -> tuple[tuple[lowering.Knob, ...], tuple[lowering.Knob, ...]]:
    engine, rollout, budget = recipe.engine, recipe.rollout, recipe.budget
    service = lowering.service_knobs(
        shape,
        element=_element(recipe.served_dtype, on_gpu=True),
        kv_cache_gib=engine.kv_cache_gib,
        slots=engine.max_loras,
        branches=len(recipe.branches),
        rank=recipe.lora.rank,
        model_len=rollout.max_model_len,
        tensor_parallel=engine.tensor_parallel,
    )
    worker = lowering.worker_knobs(
        shape,
        element=_element(recipe.base.dtype, on_gpu=True),
        tokens=budget.tokens_per_micro_batch,
        rank=recipe.lora.rank,
        branches=len(recipe.branches),
        sequence=rollout.max_prompt_tokens + rollout.max_completion_tokens,
        modules=recipe.lora.modules,
    )
    return service, worker


def _element(dtype: str, *, on_gpu: bool) -> int:
    """Bytes of a weight; auto as `dtype_here` takes it, without torch."""
    if dtype == "auto":
        return 2 if on_gpu or has_fast_bfloat16() else 4
    return {"bfloat16": 2, "float32": 4}[dtype]

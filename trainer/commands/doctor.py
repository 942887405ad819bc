"""`coevo doctor`: what this machine has, what is missing and how to get it; with a recipe, whether it fits.

The machine is looked at in `machine`, the arithmetic is in `memory`; here it meets the recipe and the cards.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from adapters.errors import UserError
from trainer.data.base import base_of
from trainer.doctor import memory
from trainer.doctor.machine import Card, MachineFact, found_cards, free_bytes, gib, imported_row, machine_rows
from trainer.recipe import Recipe
from trainer.recipe.arguments import add_recipe_arguments
from trainer.recipe.file import load

_DEEP_IMPORTS = ("torch", "torchvision", "vllm")
"""What is installed as builds that may not fit each other, which only an import tells."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, help="does this recipe fit?", is_optional=True)
    parser.add_argument(
        "--card-gib",
        action="append",
        default=[],
        type=float,
        metavar="GIB",
        help="plan for a card of this size instead of the cards found; twice for two cards",
    )
    parser.add_argument("--store", type=Path, default=Path("store"), metavar="DIR", help="where revisions will lie")
    parser.add_argument("--deep", action="store_true", help="import torch, torchvision and vLLM; takes seconds")


def run(arguments: argparse.Namespace) -> int:
    if arguments.set and not arguments.recipe:
        raise UserError("--set: there is no recipe to set it in; name one: coevo doctor RECIPE --set ...")
    recipe = load(arguments.recipe, arguments.set) if arguments.recipe else None
    cards = found_cards()
    rows = list(machine_rows(cards, arguments.store))
    if arguments.deep:
        rows += [imported_row(name) for name in _DEEP_IMPORTS]
    parts: Sequence[memory.MemoryPart] = ()
    if recipe is not None:
        planned = [Card("planned", int(size * memory.GIB)) for size in arguments.card_gib] or cards
        try:
            shape = shape_of_base(recipe)
        except UserError as error:
            # No failure: a base that was not downloaded yet is none.
            rows.append(MachineFact("WARN", "recipe fits", "unknown", str(error)))
        else:
            parts = parts_of(recipe, shape, on_gpu=bool(planned))
            rows += recipe_rows(recipe, shape, parts, planned, arguments.store)
    show(rows, parts)
    return 1 if any(row.status == "FAIL" for row in rows) else 0


def shape_of_base(recipe: Recipe) -> memory.Shape:
    """The shape of a base that is known, lies here, or was downloaded before."""
    # Before any look at the disk: a plan must be possible where the base is not.
    if recipe.base.name in memory.KNOWN_SHAPES:
        return memory.KNOWN_SHAPES[recipe.base.name]
    config = base_of(recipe) / "config.json"
    try:
        return memory.shape_of(json.loads(config.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{config}: cannot be read as the config of a Qwen3-VL ({error!r}); set base.name to one"
        ) from None


def parts_of(recipe: Recipe, shape: memory.Shape, *, on_gpu: bool) -> tuple[memory.MemoryPart, ...]:
    """What the service and one worker with all branches take."""
    engine, rollout = recipe.engine, recipe.rollout
    service = memory.service_parts(
        shape,
        element=_element(recipe.base.dtype if engine.dtype == "base" else engine.dtype),
        slots=engine.max_loras,
        slot_rank=recipe.max_lora_rank,
        kv_cache_gib=engine.kv_cache_gib,
        batched_tokens=engine.max_num_batched_tokens,
        sequences=min(engine.max_num_seqs, rollout.prompts * rollout.group_size),
        on_gpu=on_gpu,
    )
    worker = memory.worker_parts(
        shape,
        element=_element(recipe.base.dtype),
        rank=recipe.lora.rank,
        branches=len(recipe.branches),
        tokens=recipe.budget.tokens_per_micro_batch,
        on_gpu=on_gpu,
    )
    return (*service, *worker)


def recipe_rows(
    recipe: Recipe, shape: memory.Shape, parts: Sequence[memory.MemoryPart], cards: Sequence[Card], store: Path
) -> Iterator[MachineFact]:
    service_knobs, worker_knobs = _knobs(recipe, shape)
    if len(cards) > 1:  # the service has the first for itself
        service = [part for part in parts if part.process == "service"]
        worker = [part for part in parts if part.process == "worker"]
        yield fit_row("service fits", memory.total(service), cards[0], service_knobs)
        yield fit_row("worker fits", memory.total(worker), cards[1], worker_knobs)
    else:
        host = Card("this machine's free memory", psutil.virtual_memory().available)
        knobs = memory.shared_knobs([*service_knobs, *worker_knobs])
        yield fit_row("recipe fits", memory.total(parts), cards[0] if cards else host, knobs)
    # Of each branch a revision that is served and one that arrives; and two more.
    wanted = 2 * len(recipe.branches) + 2
    if recipe.engine.max_loras < wanted:
        finding = f"{recipe.engine.max_loras} for {len(recipe.branches)} branches"
        remedy = f"publishing waits for scoring; set engine.max_loras = {wanted}"
        yield MachineFact("WARN", "adapter slots", finding, remedy)
    adapter = memory.lora_parameters(shape, recipe.lora.rank)
    phase_ends = 2 * recipe.method.cycles if recipe.method.cyclic else 1
    stored = memory.store_bytes(
        adapter, branches=len(recipe.branches), keep_last=recipe.budget.keep_last, phase_ends=phase_ends
    )
    yield _room_row("disk for the run", stored, store, "make room, keep the store elsewhere, or lower method.cycles")
    # An upper bound: as many again as there are slots, two bytes a parameter.
    served = 2 * recipe.engine.max_loras * adapter * 2
    cache = Path(recipe.engine.adapter_cache)
    yield _room_row("served adapters", served, cache, "set engine.adapter_cache to a larger place")


def _room_row(subject: str, need: int, folder: Path, remedy: str) -> MachineFact:
    free = free_bytes(folder)
    finding = f"at most {gib(need)} GiB, {gib(free)} GiB free at {folder}"
    return MachineFact("OK", subject, finding) if need <= free else MachineFact("WARN", subject, finding, remedy)


def fit_row(subject: str, need: int, card: Card, knobs: Sequence[memory.Knob]) -> MachineFact:
    """Whether it fits with something to spare, and which number to lower if not."""
    finding = f"{gib(need)} GiB of {gib(card.bytes)} ({card.name})"
    too_much = need + memory.SPARE - card.bytes
    if too_much <= 0:
        return MachineFact("OK", subject, finding)
    lowered, left = memory.lower(too_much, knobs)
    steps = " and ".join(f"{knob.path} from {knob.now:g} to {knob.to:g}" for knob in lowered)
    if left:
        remedy = f"even with {steps} it is {gib(left)} GiB too large; take a smaller base.name or one more card"
        return MachineFact("FAIL", subject, finding, remedy)
    return MachineFact("FAIL", subject, finding, f"lower {steps}")


def _knobs(recipe: Recipe, shape: memory.Shape) -> tuple[tuple[memory.Knob, ...], tuple[memory.Knob, ...]]:
    engine, rollout, budget = recipe.engine, recipe.rollout, recipe.budget
    service = memory.service_knobs(
        shape,
        element=_element(recipe.base.dtype if engine.dtype == "base" else engine.dtype),
        kv_cache_gib=engine.kv_cache_gib,
        slots=engine.max_loras,
        branches=len(recipe.branches),
        rank=recipe.lora.rank,
        model_len=rollout.max_model_len,
    )
    worker = memory.worker_knobs(
        shape,
        element=_element(recipe.base.dtype),
        tokens=budget.tokens_per_micro_batch,
        rank=recipe.lora.rank,
        branches=len(recipe.branches),
        sequence=rollout.max_prompt_tokens + rollout.max_completion_tokens,
    )
    return service, worker


def _element(dtype: str) -> int:
    return {"bfloat16": 2, "float32": 4}[dtype]


def show(rows: Sequence[MachineFact], parts: Sequence[memory.MemoryPart]) -> None:
    """Tables on a terminal, else a line a row."""
    if sys.stdout.isatty():
        _show_tables(rows, parts)
        return
    for row in rows:
        print(f"{row.status:<4}  {row.subject}: {row.finding}" + (f" -> {row.remedy}" if row.remedy else ""))
    for part in parts:
        print(f"memory  {part.process}: {part.name}: {gib(part.bytes)} GiB ({part.note})")
    if parts:
        print(f"memory  sum: {gib(memory.total(parts))} GiB")


def _show_tables(rows: Sequence[MachineFact], parts: Sequence[memory.MemoryPart]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    colours = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}
    checks = Table(box=box.SIMPLE_HEAD)
    for column in ("", "what", "found", "remedy"):
        checks.add_column(column, overflow="fold")
    for row in rows:
        checks.add_row(
            f"[{colours[row.status]}]{row.status}[/]", escape(row.subject), escape(row.finding), escape(row.remedy)
        )
    console = Console()
    console.print(checks)
    if parts:
        sums = Table("process", "memory", "GiB", "how", box=box.SIMPLE_HEAD, show_footer=True)
        for part in parts:
            sums.add_row(part.process, part.name, gib(part.bytes), part.note)
        sums.columns[1].footer, sums.columns[2].footer = "sum", gib(memory.total(parts))
        sums.columns[2].justify = "right"
        console.print(sums)

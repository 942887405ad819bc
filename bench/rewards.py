"""How many completions the reward pool scores in a second, beside math-verify called directly.

    python -m bench.rewards [--json FILE] [--children 2] [--repeats 5]

Two loads, both with the reward `math`: the miniature's answers (2,000 different completions), and the 200 LaTeX
pairs of bench/latex_pairs.jsonl, whose verdicts are checked. The peer parses and verifies the same completions one
after the other in one process, without a time limit. The two take turns, and both start anew each time with what
`trainer.math_reward.warm_up` has taught the parser, so that no cache holds an answer. Figures are medians.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, cast

from math_verify import parse, verify

from trainer.math_reward import warm_up
from trainer.reward_pool import RewardPool
from trainer.rewards import Item, Rule

PAIRS = Path(__file__).parent / "latex_pairs.jsonl"

T = TypeVar("T")
Verdicts = list[bool]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="scores per second of the reward pool, beside math-verify's own")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--children", type=int, default=2, metavar="N", help="processes that score (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements of each (default: 5)")


def run(arguments: argparse.Namespace) -> int:
    warm_up()
    pairs, expected = latex_pairs()
    rows: list[dict[str, object]] = []
    for what, items in (("rewards: miniature answers", miniature_answers(2000)), ("rewards: LaTeX pairs", pairs)):
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(arguments.repeats):
            rate, verdicts = _ours(items, arguments.children)
            assert items is not pairs or verdicts == expected, "a LaTeX pair got another verdict than the list says"
            ours.append(rate)
            theirs.append(_theirs(items))
        row = _row(what, statistics.median(ours), statistics.median(theirs))
        print(f"{what}: {row['ours']}/s, math-verify alone {row['theirs']}/s, ratio {row['ratio']}")
        rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def latex_pairs() -> tuple[list[Item], Verdicts]:
    """The shipped completions with their gold answers, and whether each is right."""
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    return [Item(row["completion"], row["answer"]) for row in rows], [row["right"] for row in rows]


def miniature_answers(num_items: int) -> list[Item]:
    """Sums as the miniature writes them, one in four with a wrong result."""
    draw = random.Random(0)
    items: list[Item] = []
    for _ in range(num_items):
        a, b, c = draw.randrange(10, 50), draw.randrange(1, 10), draw.randrange(1, 10)
        found = a + b - c + 10 * (draw.random() < 0.25)
        items.append(Item(rf"calc{a}+{b}={a + b}-{c}={found} \boxed{{{found}}}", str(a + b - c)))
    return items


def _ours(items: Sequence[Item], num_children: int) -> tuple[float, Verdicts]:
    with RewardPool(num_children=num_children) as pool:
        pool.check(Rule("math"))
        rate, scored = _rate(lambda: pool.score(items, Rule("math"), deadline_s=120))
    return rate, [one.value == 1 for one in scored]


def _theirs(items: Sequence[Item]) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
        return process.submit(_serially, items).result()


def _serially(items: Sequence[Item]) -> float:
    return _rate(lambda: [_verified(item) for item in items])[0]


def _verified(item: Item) -> bool:
    off = cast(int, None)
    gold = parse(rf"\boxed{{{item.answer}}}", parsing_timeout=off)
    return verify(gold, parse(item.completion, parsing_timeout=off), timeout_seconds=off)


def _rate(work: Callable[[], list[T]]) -> tuple[float, list[T]]:
    began = time.perf_counter()
    results = work()
    return len(results) / (time.perf_counter() - began), results


def _row(what: str, ours: float, theirs: float) -> dict[str, Any]:
    ratio = round(ours / theirs, 2)
    return {
        "what": what,
        "unit": "1/s",
        "ours": round(ours),
        "peer": "math-verify, one process",
        "theirs": round(theirs),
        "ratio": ratio,
    }


if __name__ == "__main__":
    sys.exit(main())

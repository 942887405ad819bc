"""How many completions the reward pool scores in a second, beside math-verify called directly.

    coevo bench rewards [--json FILE] [--children 2]

Two loads, both with the reward `math`: the miniature's answers, and the 200 LaTeX pairs of bench/latex_pairs.jsonl,
whose verdicts are checked. The peer parses and verifies the same completions one after the other in this process,
without a time limit. The two take turns, eight rounds each; a round holds the same forms with other digits, so that
no cache knows an answer. The first three rounds teach both sides the forms (the LaTeX parser builds its tables as it
meets them: a new process is slower for its first hundred expressions), and the figures are medians of the other five.
"""

import argparse
import json
import logging
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from math_verify import parse, verify

from bench.command import positive
from trainer.rewards import RewardItem, Rule
from trainer.rewards.mathematics import warm_up
from trainer.rewards.pool import RewardPool

PAIRS = Path(__file__).parent / "latex_pairs.jsonl"
LEARNING = (1, 2, 3)
MEASURED = (0, 4, 5, 6, 7)  # 0: the pairs as they are

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="scores per second of the reward pool, beside math-verify's own")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--children", type=positive, default=2, metavar="N", help="processes that score (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    warm_up()
    with RewardPool(num_children=arguments.children) as pool:
        rows = [
            _measured("rewards: miniature answers", miniature_answers, pool),
            _measured("rewards: LaTeX pairs", latex_pairs, pool),
        ]
        _check_verdicts(pool)
    for row in rows:
        print(f"{row['what']}: {row['ours']}/s, {row['peer']} {row['theirs']}/s, ratio {row['ratio']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def latex_pairs(number: int) -> list[RewardItem]:
    """The shipped completions with their gold answers; every digit but 0 raised by `number`, from 9 on to 1."""
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    items = [RewardItem(_shifted(row["completion"], number), _shifted(row["answer"], number)) for row in rows]
    random.Random(number).shuffle(items)
    return items


def miniature_answers(number: int) -> list[RewardItem]:
    """2,000 sums as the miniature writes them, one in four with a wrong result."""
    draw = random.Random(number)
    items: list[RewardItem] = []
    for _ in range(2000):
        a, b, c = draw.randrange(10, 50), draw.randrange(1, 10), draw.randrange(1, 10)
        result = a + b - c + 10 * (draw.random() < 0.25)
        items.append(RewardItem(rf"calc{a}+{b}={a + b}-{c}={result} \boxed{{{result}}}", str(a + b - c)))
    return items


def _measured(label: str, load: Callable[[int], list[RewardItem]], pool: RewardPool) -> dict[str, Any]:
    pool_rates: list[float] = []
    peer_rates: list[float] = []
    for number in LEARNING + MEASURED:
        items = load(number)
        pool_rates.append(_rate(lambda items=items: pool.score(items, Rule("math"), deadline_s=300)))
        peer_rates.append(_rate(lambda items=items: [_verified(item) for item in items]))
    our_rate, their_rate = (statistics.median(rates[len(LEARNING) :]) for rates in (pool_rates, peer_rates))
    return {
        "what": label,
        "unit": "1/s",
        "ours": round(our_rate),
        "peer": "math-verify, one process",
        "theirs": round(their_rate),
        "ratio": round(our_rate / their_rate, 2),
    }


def _check_verdicts(pool: RewardPool) -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    scored = pool.score([RewardItem(row["completion"], row["answer"]) for row in rows], Rule("math"), deadline_s=300)
    assert [score.value == 1 for score in scored] == [row["right"] for row in rows], "not the verdicts of the list"


def _verified(item: RewardItem) -> bool:
    off = cast(int, None)
    gold = parse(rf"\boxed{{{item.answer}}}", parsing_timeout=off)
    return verify(gold, parse(item.completion, parsing_timeout=off), timeout_seconds=off)


def _rate(work: Callable[[], list[T]]) -> float:
    began = time.perf_counter()
    results = work()
    return len(results) / (time.perf_counter() - began)


def _shifted(text: str, number: int) -> str:
    return re.sub("[1-9]", lambda digit: str((int(digit.group()) - 1 + number) % 9 + 1), text)


if __name__ == "__main__":
    sys.exit(main())

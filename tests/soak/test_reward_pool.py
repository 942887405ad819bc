"""Minutes of scoring while the children are killed and stopped at random. COEVO_SOAK_S says for how long."""

import os
import random
import signal
import threading
import time

import psutil
import pytest

from trainer.rewards import RewardItem, Rule, Scored
from trainer.rewards.pool import RewardPool

SOAK_S = float(os.environ.get("COEVO_SOAK_S", "120"))
DEADLINE_S = 5.0


class Chaos(threading.Thread):
    """Kills or stops one of the pool's processes every now and then."""

    def __init__(self, server: psutil.Process, seed: int) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.draw = random.Random(seed)
        self.num_faults = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(self.draw.uniform(0.05, 0.5)):
            children = self.server.children()
            if children:
                self.draw.choice(children).send_signal(self.draw.choice([signal.SIGKILL, signal.SIGSTOP]))
                self.num_faults += 1


def batch(draw: random.Random) -> tuple[Rule, list[RewardItem], list[float]]:
    """Completions of one kind with the scores that they must get."""
    kind = draw.choice(["math", "choice", "numeric", "exact"])
    letters = "ABCDEFGH"
    items: list[RewardItem] = []
    expected: list[float] = []
    for _ in range(draw.randrange(1, 300)):
        gold, given = draw.randrange(8), draw.randrange(8)
        texts = {
            "math": (rf"\frac{{{gold}}}{{7}}", rf"so it is \boxed{{\frac{{{2 * given}}}{{14}}}}"),
            "choice": (letters[gold], f"The answer is ({letters[given]})."),
            "numeric": (f"{gold} cm", rf"\boxed{{{given}.0}}"),
            "exact": (f"red {gold}", rf"\boxed{{red  {given}}}"),
        }
        answer, completion = texts[kind]
        items.append(RewardItem(completion, answer))
        expected.append(0.9 * (gold == given) + 0.1 * (kind != "choice"))
    return Rule(kind, format_share=0.1), items, expected


def is_right(scored: Scored, value: float) -> bool:
    return scored.value is None or scored.value == pytest.approx(value)


@pytest.mark.soak
@pytest.mark.timeout(SOAK_S + 300)
def test_no_score_is_wrong_lost_or_doubled_while_children_are_killed() -> None:
    here = psutil.Process()
    draw = random.Random(0)
    num_scored = num_unscorable = 0
    sizes: list[int] = []
    with RewardPool(num_children=2) as pool:
        (server,) = here.children()
        chaos = Chaos(server, seed=1)
        pool.check(Rule("math"))
        chaos.start()
        ends = time.monotonic() + SOAK_S
        while time.monotonic() < ends:
            rule, items, expected = batch(draw)
            scored = pool.score(items, rule, DEADLINE_S)
            assert len(scored) == len(items)
            assert all(is_right(score, value) for score, value in zip(scored, expected, strict=True))
            num_scored += len(scored)
            num_unscorable += sum(score.value is None for score in scored)
            sizes.append(here.memory_info().rss + server.memory_info().rss)
        chaos.is_over.set()
        chaos.join()
        assert [score.value for score in pool.score(items, rule, 60.0)] == pytest.approx(expected)
        assert server.is_running(), "the fork server did not survive its children"
    print(f"{num_scored} scores, {num_unscorable} unscorable, {chaos.num_faults} faults, {sizes[-1] >> 20} MiB")
    assert num_unscorable < 0.02 * num_scored
    early, late = sizes[len(sizes) // 10], sizes[-1]
    assert late < early + (20 << 20), f"memory grew from {early >> 20} to {late >> 20} MiB"
    assert here.children() == []

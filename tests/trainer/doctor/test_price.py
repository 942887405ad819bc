"""Hours on a card: against what was measured, and against numbers that can be worked out on paper."""

import json
from pathlib import Path

import pytest

from trainer.doctor.memory import GIB, KNOWN_SHAPES, Shape, kv_bytes_per_token
from trainer.doctor.price import CARDS, SHARE, SOURCE, Engine, Group, forward_flops, hours, model_flops, token_seconds

QWEN_4B = KNOWN_SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
# 2 layers of 7 projections with 4 x 4 weights, 4 channels each; an output of 4 x 10.
SMALL = Shape(4, 2, 2, 2, 2, 4, 10, tied=True, vision_parameters=0)
MEASURED = {
    case: [
        row["ours"]
        for row in json.loads((Path(__file__).parents[3] / SOURCE).read_text())
        if row["what"] == f"gpu_step: {case} step" and row["peer"] == "packed, layers not compiled"
    ]
    for case in ("1024/1024", "4096/512")
}
SECONDS, SHARES = 0, 3


@pytest.mark.parametrize("case", MEASURED)
def test_an_update_takes_what_was_measured(case: str) -> None:
    prompt, completion = map(int, case.split("/"))
    groups = {Group(prompt, completion, size=8, teachers=0): 3600}
    computed = hours(groups, QWEN_4B, CARDS["h100"], Engine(256, 30), rank=64).updates
    assert computed == pytest.approx(MEASURED[case][SECONDS], rel=0.01)


def test_the_share_is_the_less_of_those_measured() -> None:
    assert min(rows[SHARES] for rows in MEASURED.values()) / 100 == pytest.approx(SHARE, abs=5e-4)


def test_products_are_counted_by_hand() -> None:
    weights, channels, output = 2 * 7 * 16, 2 * 2 * 2, 40
    adapters = 2 * 7 * 1 * 8  # of rank 1: both sides of a 4 x 4
    assert forward_flops(SMALL, tokens=3, pairs=5, predicted=2) == 2 * 3 * weights + 4 * 5 * channels + 2 * 2 * output
    learnt = 3 * (4 * weights + 6 * adapters) + 12 * 5 * channels + 4 * 2 * output
    assert model_flops(SMALL, 1, tokens=3, pairs=5, predicted=2) == learnt


def test_a_group_is_packed_around_its_prompt() -> None:
    group = Group(prompt=6, completion=4, size=3, teachers=1)
    assert group.tokens == 6 + 3 * 4
    assert group.pairs == (6 * 6 + 3 * 4 * 4) // 2 + 3 * 4 * 6


def test_sampling_reads_weights_and_cache_once_a_step() -> None:
    group, card = Group(1000, 2000, 8, 0), CARDS["h100"]
    cached = 2000 * kv_bytes_per_token(QWEN_4B, 2)
    weights = QWEN_4B.layers * sum(a * b for a, b in QWEN_4B.projections) + QWEN_4B.hidden * QWEN_4B.vocabulary
    room = Engine(256, 100 * cached / GIB)  # of the cache, for a hundred sequences and not 256
    expected = (2 * weights + 100 * cached) / 3.35e12 / 100
    assert token_seconds(group, QWEN_4B, card, room) == pytest.approx(expected, rel=0.02)
    # One sequence reads all weights for itself, whatever the cache could hold.
    alone = token_seconds(group, QWEN_4B, card, Engine(1, 1000))
    assert alone == pytest.approx((2 * weights + cached) / 3.35e12)


def test_hours_scale_by_the_data_sheets() -> None:
    groups = {Group(1024, 1024, 8, 1): 100}
    h100, a100, h200 = (
        hours(groups, QWEN_4B, CARDS[name], Engine(256, 30), rank=64) for name in ("h100", "a100", "h200")
    )
    assert a100.updates / h100.updates == pytest.approx(989 / 312)
    assert (h200.updates, h200.scoring) == (h100.updates, h100.scoring)
    assert h200.sampling < h100.sampling < a100.sampling


def test_hours_add_up_over_groups_teachers_and_updates() -> None:
    plain, taught = Group(100, 50, 8, 0), Group(100, 50, 8, 2)
    both = hours({plain: 3, taught: 2}, QWEN_4B, CARDS["h100"], Engine(64, 30), rank=8, updates=2)
    parts = [
        hours({group: count}, QWEN_4B, CARDS["h100"], Engine(64, 30), rank=8, updates=2)
        for group, count in ((plain, 3), (taught, 2))
    ]
    assert both.total == pytest.approx(sum(part.total for part in parts))
    assert parts[0].scoring == 0
    tripled = hours({plain: 1}, QWEN_4B, CARDS["h100"], Engine(64, 30), rank=8, updates=3)
    assert tripled.updates == pytest.approx(parts[0].updates / 2)  # thrice one update, beside twice three

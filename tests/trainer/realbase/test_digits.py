import itertools

import numpy as np
import pytest

from trainer.realbase.digits import CELL, Split, of_split, picture, scans

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def test_splits_are_disjoint_and_hold_every_scan() -> None:
    numbers = {split: set(of_split(split).tolist()) for split in SPLITS}
    assert not any(numbers[a] & numbers[b] for a, b in itertools.combinations(SPLITS, 2))
    assert set().union(*numbers.values()) == set(range(len(scans()[1])))


@pytest.mark.parametrize("split", SPLITS)
def test_each_split_has_every_digit_often(split: Split) -> None:
    counts = np.bincount(scans()[1][of_split(split)], minlength=10)
    assert counts.min() >= 8


def test_a_picture_shows_each_scan_in_its_cell() -> None:
    numbers = of_split("train")[:3]
    row = picture(numbers, np.random.default_rng(0))
    assert row.shape == (CELL, 3 * CELL, 3)
    images_N, _ = scans()
    for position, number in enumerate(numbers):
        cell = row[:, position * CELL : (position + 1) * CELL, 0].astype(float)
        # Shifts aside, as much ink as in the scan, which is drawn 26 / 8 times as large on each side.
        assert cell.sum() / 255 == pytest.approx(images_N[number].sum() * (26 / 8) ** 2, rel=0.05)
    again = picture(numbers, np.random.default_rng(1))
    assert not np.array_equal(row, again)

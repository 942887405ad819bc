"""Colours of branches: apart for colour-blind people, and seen on light and dark."""

from itertools import combinations

import numpy as np
import pytest

from service.palette import COLOURS, NEUTRAL, PHASES, colours

# What people see who have no cones for red (protan) or green (deutan): Machado, Oliveira and Fernandes, 2009, table 1.
SEEN = {
    "all cones": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
WHITE = np.array([0.95047, 1, 1.08883])


def linear(colour: str) -> np.ndarray:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(colour: str, matrix) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(np.asarray(matrix) @ linear(colour), 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#181c22"])
def test_every_colour_stands_out_on_light_and_on_dark(ground: str) -> None:
    for colour in (*COLOURS, NEUTRAL, *PHASES.values()):
        assert contrast(colour, ground) >= 3, colour  # WCAG 1.4.11


@pytest.mark.parametrize("people", SEEN)
def test_the_first_five_are_told_apart_by_everybody(people: str) -> None:
    for a, b in combinations(COLOURS[:5], 2):
        assert np.linalg.norm(lab(a, SEEN[people]) - lab(b, SEEN[people])) > 15, (a, b)


def test_the_base_and_the_merge_are_no_branches() -> None:
    assert colours(["text", "base", "image", "merged"]) == {
        "text": COLOURS[0],
        "image": COLOURS[1],
        "base": NEUTRAL,
        "merged": NEUTRAL,
    }

"""The tables of docs/scale.md: they are what the planner says, and the simulation does what can be worked out."""

import json
from pathlib import Path

import pytest

from bench.branches import RESULTS, from_rows, table
from bench.scale import BASES, Rates, measured_rates, planned_table, simulate, simulated_table

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text()
RATES = Rates(gather=3.0, learn=2.0, publish=0.5)


def test_the_page_has_the_tables_that_the_planner_makes() -> None:
    """If not: python -m bench.scale, into docs/scale.md"""
    assert "\n".join(planned_table()) in PAGE
    assert len(BASES) == 4


@pytest.mark.skipif(not RESULTS.exists(), reason="not measured yet: coevo bench branches --json bench/results/...")
def test_the_page_has_the_growth_that_was_measured_and_simulated() -> None:
    growth = from_rows(json.loads(RESULTS.read_text()))
    assert table(growth) in PAGE
    assert "\n".join(simulated_table(measured_rates())) in PAGE


def test_a_branch_alone_does_one_thing_after_another() -> None:
    assert simulate(1, 7, cores=1, workers=1, rates=RATES) == pytest.approx(7 * (3 + 2 + 0.5))
    assert simulate(1, 7, cores=4, workers=4, rates=RATES) == pytest.approx(7 * (3 + 2 + 0.5))


def test_a_worker_without_prefetch_does_so_for_all_its_branches() -> None:
    assert simulate(4, 5, cores=1, workers=1, rates=RATES, prefetch=0) == pytest.approx(20 * 5.5)
    assert simulate(4, 5, cores=4, workers=4, rates=RATES, prefetch=0) <= 5 * 5.5 + 3 * 0.5


@pytest.mark.parametrize(
    ("cores", "workers", "rates", "slowest"),
    [
        (1, 8, RATES, 3.0),  # the core
        (64, 1, Rates(0.1, 2.0, 0.5), 2.0),  # the worker: one learns at a time
        (64, 64, Rates(3.0, 2.0, 1.5), 1.5),  # the service: one is published at a time
    ],
)
def test_many_branches_take_as_long_as_what_only_one_does_at_a_time(
    cores: int, workers: int, rates: Rates, slowest: float
) -> None:
    seconds = simulate(64, 10, cores=cores, workers=workers, rates=rates)
    assert 640 * slowest <= seconds <= 640 * slowest * 1.05


def test_more_cores_and_workers_are_never_slower() -> None:
    times = [simulate(32, 6, cores=size, workers=size, rates=RATES) for size in (1, 2, 4, 8, 16, 32)]
    assert times == sorted(times, reverse=True)

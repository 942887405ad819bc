"""Rates, which of them are kept, and the journal that outlives an interruption."""

import json
from pathlib import Path

import pytest

from adapters.errors import UserError
from trainer.evaluation.pass_rates import (
    ALWAYS,
    KEPT,
    NEVER,
    OUTSIDE,
    Bounds,
    Journal,
    PromptRate,
    fate,
    histogram,
    pass_rate,
)

HEAD = {"model": "base", "samples": 8, "rule": {"kind": "exact", "format_pattern": None}}
RATES = [
    PromptRate(index=4, rate=0.25, cut_off=0.5),
    PromptRate(index=0, rate=0.0),
    PromptRate(index=2, lost="unscorable", why="answer 'é': reward choice needs one letter, such as B"),
]
BY_INDEX = {rate.index: rate for rate in RATES}


def test_answers_that_nobody_judged_are_in_no_rate() -> None:
    assert pass_rate([1.0, None, 0.0, None]) == 0.5
    assert pass_rate([0.0, 0.0]) == 0.0
    assert pass_rate([None, None]) is None


@pytest.mark.parametrize(
    ("rate", "bounds", "expected"),
    [
        (0.0, Bounds(), NEVER),
        (1.0, Bounds(), ALWAYS),
        (0.125, Bounds(), KEPT),
        (0.875, Bounds(), KEPT),
        (0.25, Bounds(0.25, 0.75), OUTSIDE),
        (0.75, Bounds(0.25, 0.75), OUTSIDE),
        (0.0, Bounds(-1.0, 1.0), KEPT),
        (1.0, Bounds(0.0, 2.0), KEPT),
        (-0.5, Bounds(), NEVER),  # a reward of one's own may take points away
    ],
)
def test_rates_between_the_bounds_are_kept(rate: float, bounds: Bounds, expected: str) -> None:
    assert fate(PromptRate(index=0, rate=rate), bounds) == expected


def test_a_prompt_without_a_rate_is_never_kept() -> None:
    assert fate(PromptRate(index=0, lost="unscorable"), Bounds(-1.0, 2.0)) == "unscorable"


def test_a_histogram_has_only_all_or_nothing_at_its_ends() -> None:
    rates = [0.0, 0.001, 0.125, 0.5, 0.999, 1.0, 1.0]
    assert histogram(rates, 2) == [(0.0, 1), (0.5, 4), (1.0, 2)]
    assert histogram(rates, 8)[1] == (0.125, 2)
    fine = histogram(rates, 64)
    assert [share for share, _ in fine] == [step / 10 for step in range(11)]
    assert sum(count for _, count in fine) == len(rates)
    assert (fine[0][1], fine[1][1], fine[9][1], fine[10][1]) == (1, 2, 1, 2)


def test_a_journal_gives_back_its_rates(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl.journal"
    journal = Journal(path, HEAD)
    assert not path.exists()
    journal.add(RATES[:2])
    journal.add(RATES[2:])
    assert journal.rates == Journal(path, HEAD).rates == BY_INDEX
    head, first, *_ = map(json.loads, path.read_text().splitlines())
    assert head == HEAD
    assert first == {"place": 4, "rate": 0.25, "cut_off": 0.5}


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_being_written_is_asked_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "kept.jsonl.journal"
    Journal(path, HEAD).add(RATES)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, HEAD)
    assert journal.rates == {rate.index: rate for rate in RATES[:2]}
    journal.add(RATES[2:])
    assert Journal(path, HEAD).rates == BY_INDEX


def test_a_head_that_was_being_written_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl.journal"
    path.write_text('{"model": "ba')
    journal = Journal(path, HEAD)
    journal.add(RATES)
    assert Journal(path, HEAD).rates == journal.rates == BY_INDEX


def test_answers_to_something_else_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl.journal"
    Journal(path, HEAD).add(RATES)
    with pytest.raises(UserError, match=r"answers to something else: samples was 8 and is 4; ask the same again"):
        Journal(path, HEAD | {"samples": 4})


@pytest.mark.parametrize("text", ["[]\n", "no journal\n", '{"model": "base"}\n{"rate": 0.5}\n'])
def test_a_file_that_is_no_journal_is_one_line_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kept.jsonl.journal"
    path.write_text(text)
    with pytest.raises(UserError, match="not what this command has left there; remove it"):
        Journal(path, HEAD)
    assert path.read_text() == text

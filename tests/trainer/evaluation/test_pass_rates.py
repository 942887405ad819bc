"""Rates, which of them are kept, and the journal that outlives an interruption."""

import json

import pytest

from adapters.errors import UserError
from trainer.evaluation.pass_rates import (
    ALWAYS,
    KEPT,
    NEVER,
    OUTSIDE,
    Bounds,
    Journal,
    Rated,
    fate,
    histogram,
    pass_rate,
)

ASKED = {"model": "base", "samples": 8, "rule": {"kind": "exact", "format_pattern": None}}
FOUND = [
    Rated(place=4, rate=0.25, cut_off=0.5),
    Rated(place=0, rate=0.0),
    Rated(place=2, lost="unscorable", why="answer 'é': reward choice needs one letter, such as B"),
]


def test_what_nobody_judged_is_in_no_rate() -> None:
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
def test_what_lies_between_the_bounds_is_kept(rate: float, bounds: Bounds, expected: str) -> None:
    assert fate(Rated(place=0, rate=rate), bounds) == expected


def test_what_has_no_rate_is_never_kept() -> None:
    assert fate(Rated(place=0, lost="unscorable"), Bounds(-1.0, 2.0)) == "unscorable"


def test_a_histogram_counts_every_rate_once_and_only_all_or_nothing_at_its_ends() -> None:
    rates = [0.0, 0.001, 0.125, 0.5, 0.999, 1.0, 1.0]
    assert histogram(rates, 2) == [(0.0, 1), (0.5, 4), (1.0, 2)]
    assert histogram(rates, 8)[1] == (0.125, 2)
    fine = histogram(rates, 64)
    assert [share for share, _ in fine] == [step / 10 for step in range(11)]
    assert sum(count for _, count in fine) == len(rates)
    assert (fine[0][1], fine[1][1], fine[9][1], fine[10][1]) == (1, 2, 1, 2)


def test_a_journal_gives_back_what_was_noted_down(tmp_path) -> None:
    path = tmp_path / "kept.jsonl.journal"
    journal = Journal(path, ASKED)
    assert not path.exists()
    journal.add(FOUND[:2])
    journal.add(FOUND[2:])
    assert journal.rated == Journal(path, ASKED).rated == {one.place: one for one in FOUND}
    assert json.loads(path.read_text().splitlines()[0]) == ASKED


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_being_written_is_asked_again(tmp_path, cut: int) -> None:
    path = tmp_path / "kept.jsonl.journal"
    Journal(path, ASKED).add(FOUND)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, ASKED)
    assert journal.rated == {one.place: one for one in FOUND[:2]}
    journal.add(FOUND[2:])
    assert Journal(path, ASKED).rated == {one.place: one for one in FOUND}


def test_a_head_that_was_being_written_is_written_again(tmp_path) -> None:
    path = tmp_path / "kept.jsonl.journal"
    path.write_text('{"model": "ba')
    journal = Journal(path, ASKED)
    journal.add(FOUND)
    assert Journal(path, ASKED).rated == journal.rated == {one.place: one for one in FOUND}


def test_answers_to_something_else_are_refused_by_name(tmp_path) -> None:
    path = tmp_path / "kept.jsonl.journal"
    Journal(path, ASKED).add(FOUND)
    with pytest.raises(UserError, match=r"answers to something else: samples was 8 and is 4; ask the same again"):
        Journal(path, ASKED | {"samples": 4})


@pytest.mark.parametrize("text", ["[]\n", "no journal\n", '{"model": "base"}\n{"rate": 0.5}\n'])
def test_a_file_that_is_no_journal_is_one_line_and_stays(tmp_path, text: str) -> None:
    path = tmp_path / "kept.jsonl.journal"
    path.write_text(text)
    with pytest.raises(UserError, match="not what this command has left there; remove it"):
        Journal(path, ASKED)
    assert path.read_text() == text

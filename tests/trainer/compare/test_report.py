"""Everything that a comparison shows, from made-up answers and events of a real plan."""

import io
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from service.palette import COLOURS
from tests.trainer.orchestration.run_events import overlap, step
from trainer.compare.answers import ResultAnswers
from trainer.compare.choices import Rates, ScaledModel
from trainer.compare.pictures import pictures
from trainer.compare.report import markdown, notes, write_report
from trainer.compare.results import Results, as_json, measured_by, measured_in, results_of
from trainer.compare.standings import Standings
from trainer.plan.make import make_plan
from trainer.plan.results import planned_results
from trainer.recipe import ComparisonConfig, Recipe
from trainer.recipe.file import load

TOKENS = ("mixed3-tokens", "mopd-tokens", "merge3-tokens")
SYSTEMS = ("mixed2", "copd2", "mixed3", "mopd", "copd3", "pilot", "ages", "sweep", *TOKENS)
RECIPE = load(Path("recipes/miniature/compare-smoke.toml")).model_copy(
    update={"comparison": ComparisonConfig(seeds=2, systems=SYSTEMS)}
)
LEVELS = {"copd2": 0.95, "copd3": 0.95, "base": 0.3}


@dataclass(frozen=True)
class Measured:
    answers: list[ResultAnswers]
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def measured() -> Measured:
    plan = make_plan(RECIPE)
    rng = np.random.default_rng(0)
    rows = [(result.seed, result.system, result.row) for result in planned_results(plan)]
    answers = [
        ResultAnswers(
            seed, system, row, exam, way, tuple((rng.random(40) < LEVELS.get(system, 0.6)).astype(float)), 20.0, 0.0
        )
        for seed, system, row in [*rows, (0, "base", ""), (1, "base", "")]
        for exam in RECIPE.capabilities
        for way in ("greedy", "sampled")
    ]
    events = [step(s.branch, s.number, 0.5, *(str(teacher.ref) for teacher in s.teachers)) for s in plan.steps]
    ages = sorted({segment.steps[-1].number for segment in plan.segments if segment.group == "s0-experts"})
    for seed in range(2):
        for age in ages:
            for group in (f"s{seed}-experts", f"s{seed}-copd3"):
                names = [f"{group}-{name}@{age}" for name in ("text", "image")]
                events.append(overlap(age, *names, value=0.99 - age / 100 * (seed + 1)) | {"system": group})
        names = [f"s{seed}-pilot-t{hundredths}@2" for hundredths in (40, 70, 100, 130, 160)]
        events.append(overlap(2, *names, f"s{seed}-experts-image@10") | {"system": f"s{seed}-pilot"})
    events[0]["metrics"]["native/cosine:text:image"] = 0.5
    events[0]["branch"] = "s0-mixed3"
    return Measured(answers, events)


@pytest.fixture(scope="module")
def results(measured: Measured) -> Results:
    return results_from(measured.answers, measured.events)


def results_from(
    answers: list[ResultAnswers], events: list[dict[str, Any]], recipe: Recipe = RECIPE, rates: Rates | None = None
) -> Results:
    merges = {seed: {"copd3": ScaledModel(1.5, {"1": 0.7, "1.5": 0.8}, {"text - image": 0.4})} for seed in range(2)}
    standings = Standings(answers)
    measured = measured_by(events, recipe, standings)
    return results_of(recipe, standings, measured, {"text": 0.1, "image": 0.2, "video": 0.2}, merges, rates)


def test_the_report_is_one_file_that_needs_no_other(results: Results, tmp_path: Path):
    page = write_report(results, tmp_path / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count("data:image/png;base64,") == 6
    for text in ("best blind answer", "MOPD", "CoPD, video branch", "holds", "seed 1", "Pearson", "generated"):
        assert text in page


def test_pictures_have_the_colours_of_the_page(results: Results):
    drawn = {title: Image.open(io.BytesIO(png)).convert("RGB").tobytes() for title, png in pictures(results).items()}
    # Three pixels of one colour in a row: a line, and no blend of two. The last is Matplotlib's first.
    rows = {colour: bytes(3 * ImageColor.getrgb(colour)) for colour in (*COLOURS[:2], "#1f77b4")}
    shown = {colour for colour, row in rows.items() if any(row in picture for picture in drawn.values())}
    assert shown == {*COLOURS[:2]}


def test_claims_have_a_verdict_in_both_ways_of_answering(results: Results):
    claims = {
        (claim["ahead"], claim["behind"], claim["exam"], claim["way"]): claim
        for table in as_json(results)["tables"]
        for claim in table["claims"]
    }
    for way in ("greedy", "sampled"):
        claim = claims["CoPD", "mixed RLVR", "mean", way]
        assert claim["verdict"] == "holds"
        assert claim["difference"]["low"] > 0


def test_every_number_is_json(results: Results):
    text = json.dumps(as_json(results), allow_nan=False)
    assert json.loads(text)["seeds"] == [0, 1]
    copd = next(cost for cost in json.loads(text)["spent"] if (cost["system"], cost["row"]) == ("copd3", "merged"))
    assert copd["steps"] == 30
    assert copd["rollouts"] > 30 * 24


def test_numbers_in_the_file_stand_in_for_lost_events(results: Results, tmp_path: Path):
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(as_json(results)))
    assert measured_in(path) == results.measured


def test_the_cost_is_the_mean_of_the_seeds_that_a_line_has(measured: Measured, results: Results):
    """A system may have been added to one seed only."""
    answers = [line for line in measured.answers if (line.seed, line.system) != (1, "copd3")]
    events = [event for event in measured.events if not event.get("branch", "").startswith("s1-copd3")]
    fewer = results_from(answers, events)
    assert fewer.measured.spent["copd3", "merged"] == results.measured.spent["copd3", "merged"]


def test_systems_asked_for_before_keep_their_cost(measured: Measured, results: Results):
    now = RECIPE.model_copy(update={"comparison": ComparisonConfig(systems=("mixed2",))})
    assert results_from(measured.answers, measured.events, now).measured.spent == results.measured.spent


def test_what_is_lacking_or_was_chosen_is_told_before_the_tables(measured: Measured, results: Results):
    assert [note.partition(" (")[0] for note in notes(results)] == ["The primary metric"]
    assert "no answers of 2 seeds" in notes(results)[0]
    answers = [replace(line, way="primary") for line in measured.answers if line.way == "greedy"] + measured.answers
    rates = Rates({"copd3": {"0.001": 0.9, "0.0005": 0.8}}, {"copd3": 0.001})
    whole = results_from(answers, measured.events, rates=rates)
    (note,) = notes(whole)
    assert note.endswith(": copd3 0.001 (0.001: 90.0, 0.0005: 80.0).")
    assert whole.way == "primary"
    lines = list(markdown(whole))
    assert lines[1] == note
    # Shares of the gain, and then equal tokens, by the way that decides.
    titles = [line for line in lines if line.startswith("**")]
    assert titles[1] == "**3 branches, equal generated tokens, 2 seeds, primary**"
    assert as_json(whole)["rates"] == {"tried": rates.tried, "chosen": rates.chosen}


def test_a_system_of_equal_tokens_has_a_cost_of_its_own(results: Results):
    steps = {system: results.measured.spent[system, row].steps for system, row in
             [("mopd", ""), ("mopd-tokens", ""), ("mixed3", ""), ("mixed3-tokens", "")]}  # fmt: skip
    # An expert of one of the seeds has a step less: its event was made another's.
    expected = {"mopd": 30 + 12, "mopd-tokens": 30 + 5, "mixed3": 30, "mixed3-tokens": 38}
    assert steps == pytest.approx(expected, abs=0.5)


def test_markdown_has_the_same_tables(results: Results):
    lines = list(markdown(results))
    assert sum(line.startswith("**two branches") for line in lines) == 3
    widths = {line.count("|") for line in lines if line.startswith("| CoPD |")}
    assert len(widths) == 2  # of two exams and of three
    assert sum(line.startswith("| CoPD, 1 : 4 |") for line in lines) == 2
    assert sum(line.startswith("Pearson's r of ") for line in lines) == 2 * 4
    assert {system: len(students) for system, students in results.students.items()} == {"pilot": 10, "ages": 20}
    assert sum(line.startswith("| text | ") for line in lines) == 10
    assert sum(line.startswith("| image | ") for line in lines) == 10 + 10

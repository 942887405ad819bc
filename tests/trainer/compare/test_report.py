"""Everything that a comparison shows, from made-up answers and events of a real plan."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.orchestration.told import overlap, step
from trainer.compare.answers import MergedModel, ResultAnswers
from trainer.compare.report import grid, markdown, write_report
from trainer.compare.results import Results, as_json, results_of
from trainer.plan.comparison import planned_results
from trainer.plan.make import make_plan
from trainer.recipe import ComparisonConfig, Recipe
from trainer.recipe.file import load

SYSTEMS = ("mixed2", "copd2", "mixed3", "mopd", "copd3", "pilot", "sweep")
ASKED = load(Path("recipes/miniature/compare-smoke.toml")).model_copy(
    update={"comparison": ComparisonConfig(seeds=2, systems=SYSTEMS)}
)
LEVELS = {"copd2": 0.95, "copd3": 0.95, "base": 0.3}
Told = tuple[list[ResultAnswers], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def told() -> Told:
    made = make_plan(ASKED)
    rng = np.random.default_rng(0)
    rows = [(one.seed, one.system, one.row) for one in planned_results(made)] + [(0, "base", ""), (1, "base", "")]
    answers = [
        ResultAnswers(
            seed, system, row, exam, way, tuple((rng.random(40) < LEVELS.get(system, 0.6)).astype(float)), 20.0, 0.0
        )
        for seed, system, row in rows
        for exam in ASKED.capabilities
        for way in ("greedy", "sampled")
    ]
    events = [step(one.branch, one.number, 0.5, *(str(t.ref) for t in one.teachers)) for one in made.steps]
    ages = sorted({one.steps[-1].number for one in made.segments if one.system == "s0-x"})
    for seed in range(2):
        for age in ages:
            for system in ("x", "copd3"):
                names = [f"s{seed}-{system}-{name}@{age}" for name in ("text", "image")]
                events.append(
                    overlap(age, *names, value=0.99 - age / 100 * (seed + 1)) | {"system": f"s{seed}-{system}"}
                )
    events[0]["metrics"]["native/cosine:text:image"] = 0.5
    events[0]["branch"] = "s0-mixed3"
    return answers, events


@pytest.fixture(scope="module")
def results(told: Told) -> Results:
    return results_from(*told)


def results_from(answers: list[ResultAnswers], events: list[dict[str, Any]], asked: Recipe = ASKED) -> Results:
    merges = {seed: {"copd3": MergedModel(1.5, {"1": 0.7, "1.5": 0.8}, {"text - image": 0.4})} for seed in range(2)}
    return results_of(asked, answers, events, {"text": 0.1, "image": 0.2, "video": 0.2}, merges)


def test_the_report_is_one_file_that_needs_no_other(results, tmp_path):
    page = write_report(results, tmp_path / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert page.count("data:image/png;base64,") == 5
    for text in ("best blind answer", "MOPD", "CoPD, video branch", "holds", "seed 1", "Pearson", "generated"):
        assert text in page


def test_claims_are_told_by_both_ways_of_answering(results):
    found = {(one["ahead"], one["behind"], one["exam"], one["way"]): one for table in as_json(results)["tables"]
             for one in table["claims"]}  # fmt: skip
    for way in ("greedy", "sampled"):
        one = found["CoPD", "mixed RLVR", "mean", way]
        assert one["verdict"] == "holds"
        assert one["difference"]["low"] > 0


def test_every_number_is_json(results):
    text = json.dumps(as_json(results), allow_nan=False)
    assert json.loads(text)["seeds"] == [0, 1]
    copd = next(line for line in json.loads(text)["tables"][1]["lines"] if line["label"] == "CoPD")
    assert copd["spent"]["steps"] == 30
    assert copd["spent"]["rollouts"] > 30 * 24


def test_what_was_spent_is_the_mean_of_the_seeds_that_a_line_has(told, results):
    """A system may have been added to one seed only."""
    answers = [one for one in told[0] if (one.seed, one.system) != (1, "copd3")]
    fewer = results_from(answers, [one for one in told[1] if not one.get("branch", "").startswith("s1-copd3")])
    assert fewer.spent["copd3", "merged"] == results.spent["copd3", "merged"]
    head, *rows = grid(fewer, fewer.tables[1], "greedy")
    seeds = {row[0]: row[head.index("seeds")] for row in rows}
    assert (seeds["CoPD"], seeds["MOPD"]) == ("1", "2")


def test_what_was_spent_is_told_of_systems_asked_for_before(told, results):
    now = ASKED.model_copy(update={"comparison": ComparisonConfig(systems=("mixed2",))})
    assert results_from(*told, now).spent == results.spent


def test_markdown_has_the_same_tables(results):
    lines = list(markdown(results))
    assert sum(line.startswith("**two branches") for line in lines) == 3
    widths = {line.count("|") for line in lines if line.startswith("| CoPD |")}
    assert len(widths) == 2  # of two exams and of three
    assert sum(line.startswith("| CoPD, 1 : 4 |") for line in lines) == 2
    assert sum(line.startswith("Pearson's r of ") for line in lines) == 2
    assert sum(line.startswith("| text | ") for line in lines) == len(results.students) // 2

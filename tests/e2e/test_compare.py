"""`coevo compare` for real, at its smallest: a seed, then more systems and seeds added to it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.compare.answers import read_answers, read_merges
from trainer.compare.rates import read_rates
from trainer.evaluation.ways import KINDS

SMALL = (
    "method.cycles=1",
    "method.rlvr_steps=1",
    "method.opd_steps=1",
    "rollout.prompts=2",
    "evaluation.questions=6",
    "evaluation.overlap_prompts=2",
    "evaluation.answers.primary.samples=2",
    "comparison.scales=[0.75,1.5]",
    *(f"capabilities.{name}.data.size=64" for name in ("text", "image", "video")),
    *(f"capabilities.{name}.held_out.size=6" for name in ("text", "image", "video")),
)


def small(
    out: Path, *systems: str, resume: bool = False, seeds: int = 1, rates: tuple[float, ...] = ()
) -> subprocess.CompletedProcess[str]:
    settings = (*SMALL, f"comparison.systems={json.dumps(systems)}", f"comparison.rates={json.dumps(rates)}")
    sets = [word for setting in settings for word in ("--set", setting)]
    words = [*sets, "--seeds", str(seeds), "--together", "2", "--out", str(out), *(["--resume"] if resume else [])]
    command = [sys.executable, "-m", "clients.cli", "compare", "recipes/miniature/compare.toml", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def answered(out: Path) -> set[tuple[str, str]]:
    return {(answers.system, answers.row) for answers in read_answers(out / "answers" / "seed-0.jsonl")}


PAIR = {("experts", "text"), ("experts", "image"), ("merge2", "merged")}
EXPERTS = PAIR | {("experts", "video"), ("merge3", "merged")}
COPD2 = {("copd2", "text"), ("copd2", "image"), ("copd2", "merged")}


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_seed_is_trained_examined_and_reported(tmp_path: Path):
    out = tmp_path / "out"
    done = small(out, "static_v2t", "copd2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert answered(out) == {("base", ""), ("static_v2t", "")} | PAIR | COPD2
    assert all(len(answers.rewards) == 6 for answers in read_answers(out / "answers" / "seed-0.jsonl"))
    merges = read_merges(out, 0)
    assert merges.keys() == {"experts-text", "experts-image", "static_v2t", "merge2", "copd2"}
    exams = [line for line in done.stdout.splitlines() if "examining" in line and "s0-merge2-merged-75" in line]
    assert exams[0].partition(" on ")[2] == "questions: 6 of text, 6 of image"
    assert all(merge.scale in (0.75, 1.5) and merge.tried.keys() == {"0.75", "1.5"} for merge in merges.values())
    comparison = json.loads((out / "comparison.json").read_text())
    lines = {line["label"]: line for line in comparison["tables"][0]["lines"]}
    assert lines["static OPD image -> text"]["spent"]["steps"] == 2 + 2 + 2
    assert "data:image/png" in (out / "report.html").read_text()
    assert (out / "tables.md").read_text().count("\n| CoPD |") == 6  # of two tables, in three ways
    assert {answers.way for answers in read_answers(out / "answers" / "seed-0.jsonl")} == set(KINDS)
    items = [json.loads(line) for line in (out / "items" / "seed-0.jsonl").read_text().splitlines()]
    assert {"base", "s0-copd2-merged"} < {item["model"] for item in items}
    assert all(item["text"] for item in items)

    again = small(out, "static_v2t", "copd2")
    assert again.returncode == 2
    assert "add --resume" in again.stderr


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_systems_and_seeds_are_added_to_a_comparison(tmp_path: Path):
    out = tmp_path / "out"
    assert small(out, "static_v2t").returncode == 0
    before = (out / "answers" / "seed-0.jsonl").read_text()
    assert answered(out) == {("base", ""), ("static_v2t", "")} | PAIR

    second = small(out, "static_v2t", "copd2", "mopd", resume=True, seeds=2)
    assert second.returncode == 0, second.stdout + second.stderr
    after = (out / "answers" / "seed-0.jsonl").read_text()
    assert after.startswith(before)
    assert "s0-experts-text@1 " not in second.stdout  # experts are not trained again
    assert answered(out) == {("base", ""), ("static_v2t", ""), ("mopd", "")} | EXPERTS | COPD2
    assert json.loads((out / "comparison.json").read_text())["seeds"] == [0, 1]


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_every_system_has_the_rate_that_validation_questions_choose(tmp_path: Path):
    """A rate of 1 breaks every branch in a step."""
    out = tmp_path / "out"
    done = small(out, "mixed3-tokens", "mopd-tokens", rates=(1e-3, 1.0))
    assert done.returncode == 0, done.stdout + done.stderr
    rates = read_rates(out)
    assert rates is not None
    assert rates.chosen == dict.fromkeys(("experts", "merge3", "mixed3-tokens", "mopd-tokens"), 1e-3)
    assert "learning rate of mopd-tokens: 0.001 (validation, 0.001: " in done.stdout
    assert not list((out / "lr-1" / "store").glob("s0-*")), "the reported seed is not trained at what was refused"
    assert json.loads((out / "comparison.json").read_text())["rates"]["chosen"] == rates.chosen
    assert "Learning rates, by validation questions" in (out / "tables.md").read_text()

    again = small(out, "mixed3-tokens", "mopd-tokens", rates=(1e-3, 1.0), resume=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "loading the engine" not in again.stdout  # nothing is left to train or to ask

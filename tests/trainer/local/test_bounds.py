"""What check and doctor say of a plan's longest step, and of the room for its records."""

from pathlib import Path

import pytest

from clients.cli import main
from trainer.local.bounds import bound_facts
from trainer.plan.bounds import kept_rollouts
from trainer.plan.make import make_plan
from trainer.recipe.file import load

PAPER = Path("recipes/paper-copd2.toml")


def test_a_step_that_is_too_long_fails_with_its_remedy(tmp_path: Path) -> None:
    recipe = load(PAPER, ["budget.tokens_per_s=500"])
    fact = next(bound_facts(make_plan(recipe), recipe, tmp_path))
    assert (fact.status, fact.subject) == ("FAIL", "longest step")
    assert fact.finding.endswith("that needs 971 tokens a second")
    assert fact.remedy == "take a faster engine, or lower rollout.prompts or max_completion_tokens"


def test_records_that_are_there_need_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load(PAPER)
    plan = make_plan(recipe)
    need = kept_rollouts(plan, recipe).bytes
    monkeypatch.setattr("trainer.doctor.fit.free_bytes", lambda folder: need - 10)
    (short,) = bound_facts(plan, recipe, tmp_path, if_short="FAIL")
    assert (short.status, short.subject, short.remedy) == (
        "FAIL",
        "disk for rollouts",
        "make room, or set rollouts.keep to fewer steps",
    )
    (tmp_path / "run-1/rollouts/text").mkdir(parents=True)
    (tmp_path / "run-1/rollouts/text/3.safetensors").write_bytes(bytes(20))
    (enough,) = bound_facts(plan, recipe, tmp_path, if_short="FAIL")
    assert enough.status == "OK"


def test_doctor_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(PAPER), "--set", "budget.tokens_per_s=500"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  longest step: text@7 samples up to 67,108,864 tokens" in out
    assert "disk for rollouts: at most 16.6 GiB" in out

"""A step's rollouts as a person reads them."""

import gzip
from pathlib import Path

import pytest

from clients.cli import main
from service.schemas import RecordedCompletion, RecordedGroup, RecordedPart, StepRollouts
from trainer.commands.rollouts import colour, lines

IDS = list(b"37+2")


def completion(**changes) -> RecordedCompletion:
    usual = {"text": "37+2", "token_ids": IDS, "logprobs": [-0.1] * 4, "reward": 1.0, "why": None, "is_cut_off": False,
             "advantages": [0.5] * 4, "delta": None}  # fmt: skip
    return RecordedCompletion.model_validate(usual | changes)


def rollouts() -> StepRollouts:
    groups = [
        RecordedGroup(prompt_id=f"{number}", question=f"{number}+1?", answer="8", media=[], prompt_token_ids=[1, 2],
                      completions=[completion(), completion(reward=0.0, advantages=[-0.5] * 4)])
        for number in range(5)
    ]  # fmt: skip
    taught = RecordedGroup(
        prompt_id="x", question="<image>1+red?", answer="3", media=["sha256:0"], prompt_token_ids=[1],
        completions=[
            completion(delta=[2.0, -2.0, 0.0, 0.5]),
            completion(reward=None, why="it hung", is_cut_off=True, advantages=None),
        ],
    )  # fmt: skip
    parts = [
        RecordedPart(name="native", capability=None, groups=groups),
        RecordedPart(name="image", capability="image", groups=[taught]),
    ]
    return StepRollouts(run="small-1", branch="text", step=3, parts=parts, metrics={})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs/small-1/rollouts/text/3.json.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(rollouts().model_dump_json().encode()))
    return tmp_path


def test_questions_rewards_and_advantages_are_told(folder: Path, capsys) -> None:
    assert main(["rollouts", str(folder), "text", "3", "--prompts=2", "--completions=1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "small-1: text@3"
    assert "native: 5 prompts, 10 completions, mean reward 0.500" in out
    assert "0+1?  = 8" in out
    assert "   1.00 +0.50  37+2" in out
    assert not [line for line in out if line.startswith(("2+1?", "   0.00"))]
    assert "<image>1+red?  = 3  (1 media)" in out


def test_runs_id_and_the_folder_around_it_are_the_same(folder: Path, capsys) -> None:
    outputs: list[str] = []
    for path in (folder, folder / "runs/small-1"):
        assert main(["rollouts", str(path), "text", "3", "--part=image"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "  n/a  left   37+2 ...  [it hung]" in outputs[0]
    assert "native:" not in outputs[0]


def test_tokens_are_coloured_by_what_the_teacher_thinks_of_them() -> None:
    (_, _, _, first, _) = lines(rollouts().parts[1], lambda ids: "".join(map(chr, ids)), 9, 9)
    styles = {first.plain[span.start : span.end]: str(span.style) for span in first.spans}
    assert styles["3"] == colour(2.0) == "black on rgb(0,255,0)"
    assert styles["7"] == colour(-2.0) == "black on rgb(255,0,0)"
    assert styles["2"] == "black on rgb(191,255,191)"
    assert colour(0.01) == ""
    assert colour(50.0) == colour(2.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}", "video", "3"], "no rollouts of video@3; there are some of text"),
        (["{folder}", "text", "9"], "no rollouts of text@9"),
        (["{folder}", "text", "3", "--part=video"], "--part video: no such part; there are native, image"),
    ],
)
def test_what_is_not_there_is_one_line(folder: Path, words: list[str], message: str, capsys) -> None:
    assert main(["rollouts", *(word.format(folder=folder) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

"""A step's rollouts as a person reads them."""

from pathlib import Path

import pytest

from clients.cli import main
from service.rollouts import recorded_group
from service.schemas import RecordedPart
from tests.service import records
from trainer.commands.rollouts import colour, lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    records.write(tmp_path / "runs/small-1/rollouts/text/3.safetensors", run="small-1", branch="text")
    return tmp_path


def test_questions_rewards_and_advantages_are_told(folder: Path, capsys) -> None:
    assert main(["rollouts", str(folder), "text", "3", "--prompts=2", "--completions=1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "small-1: text@3"
    assert "native: prompts 1 to 2 of 5, mean reward of all 0.500" in out
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


def test_later_prompts_are_told_when_asked_for(folder: Path, capsys) -> None:
    assert main(["rollouts", str(folder), "text", "3", "--part=native", "--first=3", "--prompts=9"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "native: prompts 4 to 5 of 5, mean reward of all 0.500" in out
    assert [line for line in out if "+1?" in line] == ["3+1?  = 8", "4+1?  = 8"]


def test_tokens_are_coloured_by_what_the_teacher_thinks_of_them() -> None:
    groups = [recorded_group(records.groups()["image"][0])]
    part = RecordedPart(name="image", capability="image", num_groups=1, first=0, groups=groups)
    (_, _, _, first, _) = lines(part, None, lambda ids: "".join(map(chr, ids)), 9)
    styles = {first.plain[span.start : span.end]: str(span.style) for span in first.spans}
    assert styles["3"] == colour(2.0) == "black on rgb(0,255,0)"
    assert styles["7"] == colour(-2.0) == "black on rgb(255,0,0)"
    assert styles["2"] == "black on rgb(191,255,191)"
    assert colour(0.01) == ""
    assert colour(50.0) == colour(2.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}", "video", "3"], "no rollouts of video@3; text has 3"),
        (["{folder}", "text", "9"], "no rollouts of text@9; text has 3"),
        (["{folder}", "text", "3", "--part=video"], "--part video: no such part; there are native, image"),
    ],
)
def test_what_is_not_there_is_one_line(folder: Path, words: list[str], message: str, capsys) -> None:
    assert main(["rollouts", *(word.format(folder=folder) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

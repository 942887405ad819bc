"""`coevo recipe` as it is typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clients.cli import main
from trainer.recipe.reference import editor_schema, page

OWN = """
extends = "{under}"
name = "own"

[method]
kind = "copd"
"""


def test_keys_are_text_of_80_columns(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipe", "keys"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[lines.index("rollout.prompts") :][:3] == [
        "rollout.prompts",
        "    integer ≥ 1; default 32",
        "    The prompts in a step. More make its gradient less noisy and the step",
    ]
    assert 'capabilities.NAME.data.size  with type = "miniature" or "real"' in lines


def test_a_word_narrows_the_keys_to_those_that_have_it(capsys) -> None:
    assert main(["recipe", "keys", "Warm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["optimiser.warmup_steps", "optimiser.on_fork"]


def test_a_word_that_no_key_has_is_one_line_and_exit_code_2(capsys) -> None:
    assert main(["recipe", "keys", "rollout.promts"]) == 2
    assert capsys.readouterr().err == (
        "coevo recipe: rollout.promts: no key has it in its path or meaning; did you mean rollout.prompts?\n"
    )


def test_a_schema_is_printed_or_written(tmp_path, capsys) -> None:
    assert main(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == editor_schema()
    path = tmp_path / "recipe.schema.json"
    assert main(["recipe", "schema", "--out", str(path)]) == 0
    assert "#:schema ./recipe.schema.json" in capsys.readouterr().out
    assert json.loads(path.read_text()) == editor_schema()


def test_a_schema_that_cannot_be_written_is_one_line(tmp_path, capsys) -> None:
    assert main(["recipe", "schema", "--out", str(tmp_path / "nowhere" / "x.json")]) == 2
    assert "x.json: cannot be written (No such file or directory); name a file" in capsys.readouterr().err


def test_a_reference_is_the_page_of_the_docs(capsys) -> None:
    assert main(["recipe", "reference"]) == 0
    assert capsys.readouterr().out == page()


def test_no_action_is_refused(capsys) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["recipe"])
    assert exit_info.value.code == 2
    assert "ACTION" in capsys.readouterr().err


DROPPED = (
    "own.toml: [method] replaces the inherited table whole, without its cycles, topology, hub; repeat what is to stay"
)


@pytest.fixture
def in_folder_of_own(tmp_path, monkeypatch):
    # By its whole path: the commands run in another folder than the miniature's.
    (tmp_path / "own.toml").write_text(OWN.format(under=Path("recipes/miniature.toml").resolve()))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "words", [["plan", "own.toml"], ["doctor", "own.toml"], ["run", "own.toml", "--set", "base.name=nowhere/at-all"]]
)
@pytest.mark.usefixtures("in_folder_of_own")
def test_commands_say_what_a_replaced_table_drops(words: list[str], caplog) -> None:
    main(words)
    assert caplog.messages == [DROPPED]


@pytest.mark.usefixtures("in_folder_of_own")
def test_what_is_dropped_goes_to_stderr_beside_the_plan() -> None:
    # As a process: pytest takes the place of logging's last handler, which writes this.
    words = [sys.executable, "-m", "clients.cli", "plan", "own.toml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == f"{DROPPED}\n"
    assert done.stdout.startswith("segment\t")

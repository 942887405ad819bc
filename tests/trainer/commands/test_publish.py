"""What `coevo publish` refuses before anything is sent; tests/engine publishes to a service."""

import socket
from pathlib import Path

import pytest

from adapters.manifest import WEIGHTS
from clients.cli import main
from tests.adapters.files import write_adapter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line that a mistake ends in."""
    assert main(["publish", *map(str, words)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("coevo publish: ")
    assert output.err.count("\n") == 1
    return output.err


def test_a_folder_without_an_adapter_is_told(tmp_path: Path, folder: Path, capsys) -> None:
    assert "no adapter_config.json and no adapter_model" in said(capsys, tmp_path / "nowhere", "text")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    line = said(capsys, folder, "text")
    assert line.endswith("no adapter_model.safetensors here; name a folder as PEFT's save_pretrained makes\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("Text",), "'Text' is no name; take a lower-case letter"),
        (("base",), "'base' is reserved and can be no branch"),
        (("text@3",), "'text@3' is no name"),
        (("text", "--revision=-1"), "--revision -1: no revision; take a number from 0, or leave it out"),
        (("text", "--parent=-2"), "--parent -2: no revision"),
    ],
)
def test_wrong_words_are_told_with_a_remedy(folder: Path, words: tuple[str, ...], says: str, capsys) -> None:
    assert says in said(capsys, folder, *words)


def test_an_address_that_cannot_be_asked_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COEVO_SERVICE_URL", "localhost:8000")
    assert "cannot be asked; write http://HOST:PORT" in said(capsys, folder, "text")


def test_a_service_that_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound and not listening: refused
        monkeypatch.setenv("COEVO_SERVICE_URL", url)
        monkeypatch.setattr("trainer.commands.publish._WAIT_S", 0.3)
        line = said(capsys, folder, "text")
    assert f"{url}: no answer within 0.3 s, connection refused; start the service, or mend COEVO_SERVICE_URL" in line

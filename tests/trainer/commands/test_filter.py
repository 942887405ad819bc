"""What `coevo filter` refuses before anything is asked, and what it tells at the end."""

import argparse
import json
import socket
from pathlib import Path

import pytest

from adapters.errors import UserError
from service.media import Limits
from trainer.commands.filter import add_arguments, lines, run
from trainer.data.datasets import load
from trainer.evaluation.pass_rates import Bounds, PromptRate

RECIPE = Path(__file__).parents[3] / "recipes" / "miniature.toml"


def command(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(RECIPE), *words]))


@pytest.fixture
def nobody(monkeypatch) -> str:
    """An address where no service is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("COEVO_SERVICE_URL", url)
    return url


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["taste"], "taste: the recipe has no such capability; it has text, image, video"),
        (["text", "--out=kept.csv"], "--out kept.csv: a recipe knows a file by its end; write it as kept.jsonl"),
        (["text", "--out=nowhere/kept.jsonl"], "nowhere/kept.jsonl: there is no folder nowhere; make it first"),
        (["text", "--out=there.jsonl"], "there.jsonl: is there already; take another name, or remove it"),
        (
            ["text", "--out=begun.jsonl"],
            "begun.jsonl.journal: holds answers of before; add --resume to go on with them, or remove it",
        ),
        (["text", "--samples=1"], "--samples 1: a rate needs 2 answers, one request gives 1024; take 8, say"),
        (["text", "--samples=2000"], "--samples 2000: a rate needs 2 answers, one request gives 1024; take 8, say"),
        (
            ["text", "--temperature=0"],
            "--temperature 0: take a value above 0, where answers differ, and at most 2",
        ),
        (
            ["text", "--above=0.8", "--below=0.2"],
            "--above 0.8 --below 0.2: no rate lies between them; move them apart",
        ),
        (["text", "--limit=0"], "--limit 0: nothing would be asked; take 1 or more"),
        (["text", "--adapter=Far"], "'Far' names no adapter; take BRANCH or BRANCH@REVISION, such as image@17"),
        (
            ["text", '--set=capabilities.text.data={type="dataset", name="."}'],
            "kept.jsonl: the recipe reads all of ., this file would be read too; write it elsewhere",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_asked(tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    before = {Path("there.jsonl"), Path("begun.jsonl.journal")}
    for path in before:
        path.write_text("of before")
    with pytest.raises(UserError) as error:
        command("--out=kept.jsonl", *words)
    assert str(error.value) == message
    assert {path: path.read_text() for path in Path().iterdir()} == dict.fromkeys(before, "of before")


def test_no_service_is_one_line_and_leaves_nothing(tmp_path, nobody) -> None:
    with pytest.raises(UserError, match=f"{nobody}: no service is ready there; start one"):
        command("text", f"--out={tmp_path / 'kept.jsonl'}")
    assert list(tmp_path.iterdir()) == []


def test_every_row_is_told_once(tmp_path) -> None:
    rows = [{"prompt": "1+1?", "answer": answer} for answer in ("2", "2", "", "2", "2", "2")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = load(str(path), capability="sums", on_bad_row="drop", limits=Limits())
    rated = [
        PromptRate(index=0, rate=0.0, cut_off=1.0),
        PromptRate(index=1, rate=0.25, cut_off=0.0),
        PromptRate(index=2, rate=1.0),
        PromptRate(index=3, lost="unscorable", why="it raised ValueError", cut_off=0.0),
        PromptRate(index=4, lost="unreadable", why="damaged"),
    ]
    assert list(lines("sums", rated, Bounds(), prompts, 4)) == [
        "sums: 6 rows read, 1 kept; dropped:",
        "       1  at 0 %",
        "       1  at 100 %",
        "       1  unreadable (1 x damaged)",
        "       1  unscorable (1 x it raised ValueError)",
        "       1  not asked: answer",
        "25.0 % of the answers were cut off",
        "pass rate    rows",
        "    0.0 %       1  ########################################",
        "   25.0 %       1  ########################################",
        "   50.0 %       0",
        "   75.0 %       0",
        "  100.0 %       1  ########################################",
    ]

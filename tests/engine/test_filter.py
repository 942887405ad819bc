"""Pass rates through the real service: against answers asked for by hand, interrupted, and of rows of all kinds."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from adapters.base import locate
from adapters.errors import UserError
from service.media import Limits, encode_image
from tests.engine.service_process import ServiceProcess
from trainer.commands.filter import add_arguments, run
from trainer.data.generated import prompts as miniature_prompts
from trainer.data.held_out import held_out_prompts, training_prompts
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.parts import Prompt
from trainer.recipe.file import load
from trainer.rewards import exact_reward, numeric_reward
from trainer.rollout.sample import seeds

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

RECIPE = Path(__file__).parents[2] / "recipes" / "miniature.toml"
DECODE = partial(AutoTokenizer.from_pretrained(locate("miniature")).decode, skip_special_tokens=True)


@pytest.fixture
def command(service, monkeypatch, tmp_path):
    """In a folder of its own."""
    monkeypatch.setenv("COEVO_SERVICE_URL", service.url)
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> int:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args([str(RECIPE), *words]))

    return call


def by_hand(service: ServiceProcess, prompt: Prompt, seed: int, samples: int) -> list[str]:
    with service.client() as http:
        media = {
            kind: [http.put("/media", content=data).json()["id"] for data in getattr(prompt, kind)]
            for kind in ("images", "videos")
        }
        request = {"prompts": [{"prompt": {"messages": prompt.messages}, "seed": seed, **media}], "n": samples,
                 "max_tokens": 48}  # fmt: skip
        (answer,) = http.post("/generate", params={"adapter": "base"}, json=request).json()["prompts"]
    return [DECODE(completion["token_ids"]) for completion in answer["completions"]]


def rows_of(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def ids(prompts: Prompts) -> list[str]:
    return [prompts[index].id for index in range(len(prompts))]


def settings_in(line: str) -> list[str]:
    """The values that the command says to set."""
    return [word.removeprefix("--set=") for word in shlex.split(line) if word.startswith("--set=")]


@pytest.mark.parametrize("name", ["text", "image", "video"])
def test_a_pass_rate_is_what_asking_by_hand_counts(service, command, capsys, name: str) -> None:
    assert command(name, "--out=kept.jsonl", "--samples=4", "--limit=10") == 0
    recipe = load(RECIPE)
    prompts = miniature_prompts(name, label=name, split="train", size=10, seed=recipe.seed)
    chances = seeds(10, recipe.seed, "filter", name)
    rates = [
        sum(exact_reward(text, prompts[index].answer) for text in by_hand(service, prompts[index], seed, 4)) / 4
        for index, seed in enumerate(chances)
    ]
    between = [index for index, rate in enumerate(rates) if 0 < rate < 1]
    assert [row["pass_rate"] for row in rows_of("kept.jsonl")] == [rates[index] for index in between]
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"{name}: 10 rows read, {len(between)} kept; dropped:"
    assert not list(Path().glob("*.journal"))
    again = load(RECIPE, settings_in(last))
    of_file, of_recipe = again.capabilities[name], recipe.capabilities[name]
    assert ids(training_prompts(name, of_file, 5, seed=0, limits=Limits())) == [prompts[index].id for index in between]
    assert ids(held_out_prompts(name, of_file, 5, limits=Limits())) == ids(
        held_out_prompts(name, of_recipe, 5, limits=Limits())
    )


def test_rows_of_a_data_set_are_kept_dropped_and_counted(service, command, capsys, tmp_path) -> None:
    rows = questions(tmp_path)
    unscorable = rows[0] | {"id": 100, "answer": "a few"}
    too_long = rows[0] | {"id": 101, "prompt": "1+" * 200}
    unreadable = rows[0] | {"id": 102, "image": "cut.png"}
    data = data_set(tmp_path, [unscorable, too_long, *rows, unreadable])
    assert command("image", "--out=kept.jsonl", "--samples=4", *data) == 2  # the check sees it, and asks nothing
    assert "row 11: the image is damaged" in capsys.readouterr().err
    with pytest.raises(UserError) as error:
        command("image", "--out=kept.jsonl", "--samples=4", "--unchecked", *data)
    where = f"{tmp_path / 'rows.jsonl'}: row 11: "
    assert str(error.value).startswith(where)
    assert 'capabilities.image.data.on_unreadable = "drop" goes on without' in str(error.value)
    assert not Path("kept.jsonl").exists()
    drop = "--set=capabilities.image.data.on_unreadable=drop"
    assert command("image", "--out=kept.jsonl", "--samples=4", "--resume", "--unchecked", *data, drop) == 0
    out = capsys.readouterr().out.splitlines()
    rows_kept = rows_of("kept.jsonl")
    assert out[0] == f"image: 11 rows read, {len(rows_kept)} kept; dropped:"
    (unscorable_line,) = [line for line in out if "unscorable" in line]
    assert unscorable_line.split()[:2] == ["1", "unscorable"]
    assert "reward numeric needs one number" in unscorable_line
    assert [line.split()[:2] for line in out if "unreadable" in line] == [["1", "unreadable"]]
    assert [line for line in out if "not asked" in line] == [
        "       1  not asked: more than rollout.max_prompt_tokens = 160 tokens"
    ]
    recipe = load(RECIPE, [word.removeprefix("--set=") for word in data])
    prompts = open_prompts("image", recipe.capabilities["image"].data, seed=0, limits=Limits())
    chances = seeds(10, recipe.seed, "filter", "image")
    by_id = {row["id"]: row["pass_rate"] for row in rows_kept}
    for index, row in enumerate(rows, start=1):  # after the unscorable one; the long one is no prompt
        texts = by_hand(service, prompts[index + 1], chances[index], 4)
        rate = sum(numeric_reward(text, row["answer"]) for text in texts) / 4
        assert by_id.get(row["id"]) == (rate if 0 < rate < 1 else None)
    assert [{key: row[key] for key in rows[0]} for row in rows_kept] == [rows[row["id"]] for row in rows_kept]


def text_of(prompt: Prompt) -> str:
    (text,) = [part["text"] for part in prompt.messages[0]["content"] if part["type"] == "text"]
    return text


def questions(folder: Path) -> list[dict]:
    """Eight of the miniature's as rows with paths, and a picture whose damage its header does not show."""
    generated = miniature_prompts("image", label="image", split="train", size=8, seed=0).prompts
    for number, prompt in enumerate(generated):
        (folder / f"{number}.png").write_bytes(prompt.images[0])
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    (folder / "cut.png").write_bytes(encode_image(noise)[:-2000])
    return [
        {"id": number, "prompt": text_of(prompt), "answer": prompt.answer,
         "image": f"{number}.png", "source": {"of": ["nobody"]}}
        for number, prompt in enumerate(generated)
    ]  # fmt: skip


def data_set(folder: Path, rows: Sequence[dict]) -> list[str]:
    """Overrides of the recipe."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = f'{{type = "dataset", name = "{path}", columns = {{images = "image"}}}}'
    return [f"--set=capabilities.image.data={data}", "--set=capabilities.image.reward.kind=numeric"]


def test_who_is_interrupted_goes_on_and_writes_the_same_file(service, command, tmp_path) -> None:
    words = ["text", "--samples=4", "--limit=300"]
    (tmp_path / "whole").mkdir()
    command(*words, "--out=whole/kept.jsonl")
    journal = tmp_path / "kept.jsonl.journal"
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.cli", "filter", str(RECIPE), *words, "--out=kept.jsonl"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(RECIPE.parents[1])}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ends = time.monotonic() + 120
    while not journal.exists():
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    noted = journal.read_text().splitlines()[1:]
    assert 0 < len(noted) < 300
    assert f"stopped: {len(noted)} of 300 prompts are answered; the same again with --resume goes on" in errors
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "kept.jsonl.journal"}
    with pytest.raises(UserError, match="add --resume to go on with them"):
        command(*words, "--out=kept.jsonl")
    with pytest.raises(UserError, match="samples was 4 and is 2"):
        command("text", "--samples=2", "--limit=300", "--out=kept.jsonl", "--resume")
    command(*words, "--out=kept.jsonl", "--resume")
    assert Path("kept.jsonl").read_bytes() == Path("whole/kept.jsonl").read_bytes()
    assert not journal.exists()


def test_other_bounds_need_no_other_answers(command, capsys) -> None:
    words = ["text", "--samples=4", "--limit=20", "--out=kept.jsonl"]
    with pytest.raises(UserError, match=r"no row is kept, so kept\.jsonl is not written; go on with other bounds"):
        command(*words, "--above=0.9", "--below=0.95")
    assert [path.name for path in Path().iterdir()] == ["kept.jsonl.journal"]
    noted = [json.loads(line)["rate"] for line in Path("kept.jsonl.journal").read_text().splitlines()[1:]]
    assert command(*words, "--resume", "--above=-1", "--below=2") == 0
    assert sorted(row["pass_rate"] for row in rows_of("kept.jsonl")) == sorted(noted)
    assert len(noted) == 20
    assert {0.0, 1.0} & set(noted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter=txt"], "--adapter txt: the service has no such branch; it has base"),
        (
            ['--set=capabilities.text.data={type="dataset", name="/nowhere/rows.jsonl"}'],
            "/nowhere/rows.jsonl: no such file or folder",
        ),
        (
            ["--set=capabilities.text.reward.kind=nowhere:reward"],
            "reward nowhere:reward: No module named 'nowhere'; put the module beside the recipe, or its folder on "
            "PYTHONPATH",
        ),
    ],
)
def test_what_is_not_there_is_one_line(command, tmp_path, words, message) -> None:
    with pytest.raises(UserError) as error:
        command("text", "--out=kept.jsonl", "--unchecked", *words)
    assert str(error.value).startswith(message)
    assert list(tmp_path.iterdir()) == []

"""`coevo check` as a person types it: every mistake is told with its remedy, before anything starts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from clients.cli import main
from service.media import encode_image
from trainer.queue.server import URL_VARIABLE, start
from trainer.recipe.file import load, write_resolved

REWARDS = """
def raises(completion, answer):
    return 1 / 0

def asks_for_words(completion, answer):
    return float(f"The answer is {answer}" in completion)
"""
RECIPE = """
name = "mine"
base = { name = "miniature", dtype = "float32" }
method = { kind = "rlvr", cycles = 1 }
engine = { kv_cache_gib = 1, dtype = "base", max_num_batched_tokens = 4096 }
media = { image_min_pixels = 1024, image_max_pixels = 16384 }
rollout = { prompts = 2, group_size = 2, max_prompt_tokens = 160, max_completion_tokens = 48 }
budget = { tokens_per_micro_batch = 512 }

[capabilities.sums]
data = { type = "dataset", name = "sums.jsonl", columns = { prompt = "question" } }
reward = { kind = "numeric" }

[capabilities.pictures]
data = { type = "dataset", name = "pictures.jsonl", columns = { images = "file" } }
reward = { kind = "exact" }
"""


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody's own recipe, in which he works: a recipe, two data sets, a reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("recipe.toml").write_text(RECIPE)
    Path("my_rewards.py").write_text(REWARDS)
    write_rows(Path("sums.jsonl"), [{"question": f"{a} + 3 = ?", "answer": a + 3} for a in range(20)])
    picture = encode_image(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    for number in range(10):
        Path(f"{number}.png").write_bytes(picture)
    write_rows(Path("pictures.jsonl"), [{"prompt": "Which?", "answer": "red", "file": f"{n}.png"} for n in range(10)])
    return tmp_path


def damage_a_picture() -> None:
    """Half of the file: its header is whole."""
    content = Path("7.png").read_bytes()
    Path("7.png").write_bytes(content[: len(content) // 2])


def empty_an_answer() -> None:
    write_rows(Path("sums.jsonl"), [{"question": f"{n}?", "answer": "" if n == 4 else str(n)} for n in range(20)])


def nothing() -> None:
    pass


SUMS, PICTURES = "capabilities.sums", "capabilities.pictures"
MISTAKES: dict[str, tuple[Callable[[], None], str, str]] = {
    "a missing file": (
        nothing,
        f"{SUMS}.data.name=./none.jsonl",
        f"{SUMS}.data: ./none.jsonl: no such file or folder",
    ),
    "a wrong column": (
        nothing,
        f"{SUMS}.data.columns.prompt=questoin",
        f"{SUMS}.data: sums.jsonl: no column 'questoin'; set {SUMS}.data.columns.prompt to one of 'question', 'answer'",
    ),
    "a wrong folder": (
        nothing,
        f"{PICTURES}.data.media_root=elsewhere",
        "pictures.jsonl: row 1: column 'file': 0.png: no such file in",
    ),
    "a damaged picture": (damage_a_picture, "seed=0", f"{PICTURES}.data: pictures.jsonl: row 8: "),
    "an empty answer": (empty_an_answer, "seed=0", "sums.jsonl: row 5: column 'answer': the answer is empty"),
    "an answer that the reward cannot read": (
        nothing,
        f"{SUMS}.reward.kind=choice",
        "reward choice needs one letter, such as B (and 15 more of 16 rows looked at); take another reward.kind",
    ),
    "a reward that raises": (
        nothing,
        f"{SUMS}.reward.kind=my_rewards:raises",
        f"{SUMS}.reward: sums.jsonl: row 1: it raised ZeroDivisionError",
    ),
    "prompts that are too long": (
        nothing,
        "rollout.max_prompt_tokens=4",
        "no prompt is left, most have more than rollout.max_prompt_tokens = 4 tokens; raise that",
    ),
    "no memory": (nothing, "engine.kv_cache_gib=100000", "lower engine.kv_cache_gib from 100000 to "),
    "no disk": (nothing, "budget.keep_last=1000000000", "disk for the run: at most "),
    "a wrong key": (nothing, "rollout.promts=2", "--set rollout.promts: unknown key; did you mean rollout.prompts?"),
    "a wrong base": (nothing, "base.name=/no/such/base", "base.name: /no/such/base: no such folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_remedy(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, change, words = MISTAKES[mistake]
    make()
    assert main(["check", "recipe.toml", "--set", change]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("coevo check: ")
    assert words in printed.err


@pytest.mark.parametrize("mistake", ["a wrong column", "a damaged picture", "no memory"])
def test_a_run_with_a_mistake_starts_nothing(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, change, words = MISTAKES[mistake]
    make()
    assert main(["run", "recipe.toml", "--set", change]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "out/first: holds a run; add --resume to go on with it, or take another folder with --out"),
        (["--resume"], "out/first: holds a run of another recipe; give the one in out/first/recipe.json, or another"),
    ],
)
def test_a_second_run_in_a_folder_is_told_what_to_do(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_resolved(load(Path("recipe.toml")), Path("out/first"))
    assert main(["run", "recipe.toml", "--set", "seed=7", "--out", "out/first", *words]) == 2
    assert capsys.readouterr().err.startswith(f"coevo run: {said}")


COMPARED = ("method.kind=copd", "comparison.scales=[]")


@pytest.mark.parametrize("mistake", ["a wrong column", "a damaged picture", "no memory"])
def test_a_comparison_with_a_mistake_starts_nothing(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, change, words = MISTAKES[mistake]
    make()
    changes = [word for value in (*COMPARED, change) for word in ("--set", value)]
    assert main(["compare", "recipe.toml", *changes]) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize("mistake", ["a wrong column", "a damaged picture", "a reward that raises"])
def test_a_filter_with_a_mistake_asks_nothing(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, change, words = MISTAKES[mistake]
    make()
    name = "pictures" if "picture" in mistake else "sums"
    assert main(["filter", "recipe.toml", name, "--out", "kept.jsonl", "--set", change]) == 2
    assert words in capsys.readouterr().err
    assert not list(Path().glob("kept*"))


def test_a_filter_looks_at_its_own_rows_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COEVO_SERVICE_URL", "http://127.0.0.1:9")
    damage_a_picture()
    assert main(["filter", "recipe.toml", "sums", "--out", "kept.jsonl", "--set", "engine.kv_cache_gib=100000"]) == 2
    assert "127.0.0.1:9: no service is ready there" in capsys.readouterr().err


def test_what_is_unchecked_is_told_and_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COEVO_SERVICE_URL", "http://127.0.0.1:9")
    damage_a_picture()
    assert main(["filter", "recipe.toml", "pictures", "--out", "kept.jsonl", "--unchecked"]) == 2
    problem, end = capsys.readouterr().err.splitlines()
    assert "pictures.jsonl: row 8: " in problem
    assert "127.0.0.1:9: no service is ready there" in end


def test_mistakes_hide_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    damage_a_picture()
    changes = [f"{SUMS}.data.name=./none.jsonl", f"{SUMS}.reward.kind=my_rewards:nothing", "base.name=nowhere/nothing"]
    assert main(["check", "recipe.toml", *(word for change in changes for word in ("--set", change))]) == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "coevo check: recipe.toml: 4 problems"
    assert [line.split(": ")[0].strip() for line in lines] == [
        "base.name",
        f"{SUMS}.data",
        f"{SUMS}.reward",
        f"{PICTURES}.data",
    ]


def test_a_recipe_that_is_well_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "recipe.toml"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    facts = {line.split()[1]: line for line in printed.out.splitlines() if "capabilities." in line}
    assert facts == {
        f"{SUMS}.data:": f"OK    {SUMS}.data: 16 rows",
        f"{SUMS}.reward:": f"OK    {SUMS}.reward: numeric, tried on 16 answers",
        f"{PICTURES}.data:": f"OK    {PICTURES}.data: 8 rows",
        f"{PICTURES}.reward:": f"OK    {PICTURES}.reward: exact, tried on 8 answers",
    }


def test_an_own_reward_that_bare_answers_do_not_earn_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "recipe.toml", "--set", f"{SUMS}.reward.kind=my_rewards:asks_for_words"]) == 0
    warning = f"WARN  {SUMS}.reward: my_rewards:asks_for_words gives 0 to the rows' own answers"
    assert warning in capsys.readouterr().out


def test_some_answers_that_cannot_be_judged_are_a_warning_where_rows_may_be_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_rows(Path("sums.jsonl"), [{"question": f"{n}?", "answer": "many" if n == 4 else str(n)} for n in range(12)])
    assert main(["check", "recipe.toml"]) == 2
    problem = f"{SUMS}.reward: sums.jsonl: row 5: answer 'many': reward numeric needs one number"
    assert f"coevo check: {problem}" in capsys.readouterr().err
    assert main(["check", "recipe.toml", "--set", f"{SUMS}.data.on_unreadable=drop"]) == 0
    assert f"WARN  {problem}" in capsys.readouterr().out


def test_held_out_rows_and_benchmarks_are_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.toml").write_text(
        RECIPE.replace('kind = "numeric" }', 'kind = "numeric" }\nheld_out = { type = "dataset", name = "./none.csv" }')
        + """
[evaluation.sets.letters]
capability = "sums"
data = { type = "dataset", name = "sums.jsonl", columns = { prompt = "question" } }
reward = { kind = "choice" }
"""
    )
    assert main(["check", "recipe.toml"]) == 2
    errors = capsys.readouterr().err
    assert f"{SUMS}.held_out: ./none.csv: no such file" in errors
    assert "evaluation.sets.letters.reward: sums.jsonl: row 1: answer '3': reward choice needs one letter" in errors


def test_prompts_of_which_some_are_too_long_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "1 + 1 = ? " * (40 if number % 4 == 0 else 1), "answer": 2 + number} for number in range(20)]
    write_rows(Path("sums.jsonl"), rows)
    assert main(["check", "recipe.toml"]) == 0
    assert "left out: more than rollout.max_prompt_tokens = 160 tokens -> raise" in capsys.readouterr().out


def test_too_few_rows_to_hold_any_out_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("sums.jsonl"), [{"question": "1 + 1 = ?", "answer": 2}])
    assert main(["check", "recipe.toml"]) == 2
    assert f"{SUMS}.data: 1 rows are too few to hold any out; set {SUMS}.held_out" in capsys.readouterr().err


def test_a_plan_and_a_doctor_warn_of_columns(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe.toml", "--set", f"{SUMS}.data.columns.prompt=questoin"]
    assert main(["plan", *words]) == 0
    assert f"coevo plan: warning: {SUMS}.data: sums.jsonl: no column 'questoin'" in capsys.readouterr().err
    main(["doctor", *words])
    assert f"WARN  {SUMS}.data: sums.jsonl: no column 'questoin'" in capsys.readouterr().out


def test_a_wrong_password_of_the_queue_server_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with start(folder / "queue") as server:
        monkeypatch.setenv(URL_VARIABLE, server.url.replace("redis://", "redis://nobody:secret@"))
        assert main(["run", "recipe.toml"]) == 2
    errors = capsys.readouterr().err
    assert "queue server: none that works; " in errors
    assert "secret" not in errors

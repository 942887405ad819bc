"""The recipes in examples/: their prompts open, fit, and their rewards tell right answers from wrong ones."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.base import locate
from clients.cli import main
from service.media import Limits
from trainer.data.held_out import held_out_prompts, training_prompts
from trainer.data.lengths import fit
from trainer.evaluation.exams import answer_rule
from trainer.parts import Prompt
from trainer.recipe import CapabilityConfig
from trainer.recipe.file import load
from trainer.rewards import RewardItem, Scored
from trainer.rewards.pool import RewardPool

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(num_children=1) as pool:
        yield pool


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the examples' paths start from


def only_capability(path: Path) -> tuple[str, CapabilityConfig]:
    ((name, capability),) = load(path).capabilities.items()
    return name, capability


def question_of(prompt: Prompt) -> tuple[object, ...]:
    return prompt.messages, prompt.images, prompt.videos


def completions_of(kind: str, gold: str) -> tuple[str, str]:
    """A right completion and a wrong one."""
    if kind == "my_reward:score":
        return " ".join(["word"] * int(gold)), "7"
    if kind == "reasoning-gym":
        gold = json.loads(gold)["answer"]
    return rf"Let me see. It is \boxed{{{gold}}}", r"Let me see. It is \boxed{none}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_judges_the_answers_to_its_first_rows(path: Path, pool: RewardPool) -> None:
    recipe = load(path)
    name, capability = only_capability(path)
    prompts = training_prompts(name, capability, recipe.evaluation.questions, seed=recipe.seed, limits=Limits())
    first = [prompts[index] for index in range(3)]
    pairs = [completions_of(capability.reward.kind, prompt.answer) for prompt in first]
    items = [
        RewardItem(completion, prompt.answer) for prompt, pair in zip(first, pairs, strict=True) for completion in pair
    ]
    scored = pool.score(items, answer_rule(capability.reward), 60.0)
    assert scored == [Scored(1.0), Scored(0.0)] * 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_its_base_and_holds_rows_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load(path)
    name, capability = only_capability(path)
    count = recipe.evaluation.questions
    prompts = training_prompts(name, capability, count, seed=recipe.seed, limits=Limits())
    caplog.clear()
    assert len(fit(recipe, locate(recipe.base.name))(name, prompts)) == len(prompts)
    assert caplog.messages == []
    held_out = held_out_prompts(name, capability, count, limits=Limits(), most=2)
    assert len(held_out) == 2
    trained = [question_of(prompts[index]) for index in range(len(prompts))]
    assert all(question_of(held_out[index]) not in trained for index in range(2))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_a_screen(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120


def test_the_page_shows_the_examples_as_they_are() -> None:
    page = (ROOT / "docs/your-data.md").read_text()
    shown = re.findall(r"^```(?:toml|python)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert sorted(shown) == sorted(path.read_text() for path in [*EXAMPLES, ROOT / "examples/my_reward.py"])


@pytest.mark.parametrize("name", ["own-reward", "reasoning-gym"])
def test_check_tries_a_reward_that_is_not_built_in(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"examples/{name}.toml"]) == 0
    assert re.search(r"OK +capabilities\.\w+\.reward: \S+, tried on \d+ answers", capsys.readouterr().out)


def test_what_examples_read_is_small() -> None:
    files = [path for path in (ROOT / "examples").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 60_000

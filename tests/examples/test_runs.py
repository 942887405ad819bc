"""Recipes of people's own data train for two steps on a base with Qwen's vocabulary, typed in a folder of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from trainer.recipe.file import load
from trainer.reporting.events import read_events

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
"""A portrait in colour of 512 x 600 pixels, in the public domain."""
PARTS = {
    "top left": (0, 0, 256, 300),
    "top right": (256, 0, 512, 300),
    "bottom left": (0, 300, 256, 600),
    "bottom right": (256, 300, 512, 600),
    "whole": (0, 0, 512, 600),
    "middle": (128, 150, 384, 450),
}
PHOTOS = """\
extends = "miniature"
name = "photos"
method = { kind = "rlvr", steps = 2 }
branches.people.capabilities = ["people"]

[capabilities.people.data]
type = "dataset"
name = "photos"
columns = { prompt = "question", answer = "answer", images = "file_name" }

[capabilities.people.reward]
kind = "exact"
"""
EVERYTHING = """\
# Every source in one run: GSM8K, multiple choice, photographs, clips, tasks of reasoning-gym, a reward of one's own.
extends = [
    "examples/text-gsm8k.toml", "examples/multiple-choice.toml", "photos.toml", "examples/clips.toml",
    "examples/reasoning-gym.toml", "examples/own-reward.toml",
]
name = "everything"
base.name = "qwen"
method = { kind = "rlvr", steps = 2 }
merge.method = "none"
rollout = { prompts = 2, group_size = 4, max_completion_tokens = 16 }
evaluation = { questions = 2, answers = { samples = 0 }, overlap_prompts = 0 }
engine = { max_loras = 14, max_num_seqs = 64 }

[branches]
maths.capabilities = ["maths"]
facts.capabilities = ["facts"]
people.capabilities = ["people"]
motion.capabilities = ["motion"]
sums.capabilities = ["sums"]
length.capabilities = ["length"]
"""
BRANCHES = ("maths", "facts", "people", "motion", "sums", "length")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a person has it: the examples, photographs with a table beside them, and the base."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "photos").mkdir()
    lines = ["file_name,question,answer"]
    with Image.open(PHOTOGRAPH) as photograph:
        for name, box in PARTS.items():
            file = f"{name.replace(' ', '-')}.jpg"
            photograph.crop(box).save(folder / "photos" / file, quality=90)
            lines.append(f"{file},Which part of a portrait is it?,{name}")
    (folder / "photos/metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "photos.toml").write_text(PHOTOS)
    (folder / "everything.toml").write_text(EVERYTHING)
    typed(folder, "coevo base untrained --out qwen")
    return folder


def typed(folder: Path, words: str) -> str:
    """What a command prints, where it ends well."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # Alone, so that nothing of the checkout is found by way of it.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(
        ["bash", "-euc", words], cwd=folder, env=environ, capture_output=True, text=True, timeout=1100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rewards_of(run: Path) -> dict[tuple[str, int], float]:
    """The reward of each step that was made, by branch and number."""
    (events,) = run.glob("runs/*/events.jsonl")
    steps = [event for event in read_events(events) if event["kind"] == "step"]
    return {(step["branch"], step["step"]): step["metrics"]["native/reward"] for step in steps}


@pytest.mark.soak  # minutes on two cores: 152 k rows are scored for every token
@pytest.mark.timeout(1200)
def test_every_source_trains_for_two_steps_from_a_recipe_of_a_screen(folder: Path) -> None:
    assert all(len(path.read_text().splitlines()) <= 25 for path in folder.rglob("*.toml"))
    out = folder / "out/everything"
    assert "everything" in typed(folder, "coevo run everything.toml")
    rewards = rewards_of(out)
    assert sorted(rewards) == sorted((branch, step) for branch in BRANCHES for step in (1, 2))
    # Random tokens are no right answer, but they are words, which the reward of one's own counts.
    assert {branch for (branch, _), reward in rewards.items() if reward > 0} == {"length"}
    for branch in BRANCHES:
        manifests = [json.loads((out / f"store/{branch}/{step}/manifest.json").read_text()) for step in (1, 2)]
        assert [manifest["parent"] for manifest in manifests] == [0, 1]
    assert "reward" in typed(folder, "coevo rollouts out/everything length 2")
    accuracies = json.loads((out / "results.json").read_text())["results"]
    assert {row["model"] for row in accuracies} == {"base", *(f"{branch}@2" for branch in BRANCHES)}


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", ["photos.toml", *(f"examples/{path.name}" for path in EXAMPLES)])
def test_a_recipe_alone_trains_for_two_steps(folder: Path, recipe: str) -> None:
    few = "--set evaluation.questions=2 --set evaluation.answers.samples=0 --set base.name=qwen"
    typed(folder, f"coevo run {recipe} {few}")
    resolved = load(folder / recipe)
    (branch,) = resolved.branches
    assert sorted(rewards_of(folder / "out" / resolved.name)) == [(branch, 1), (branch, 2)]

"""The supervised stage: what it moves, what it leaves, and that a stopped one makes the same weights."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3VLForConditionalGeneration

from tests.trainer.realbase.test_embed import SIZES
from tests.trainer.update.packs import processor
from trainer.miniature.build import Habits, Training
from trainer.realbase.embed import MODULES, SCALE, embed
from trainer.realbase.lessons import Lessons, teach
from trainer.realbase.questions import CAPABILITIES

STEPS = 4
LESSONS = Lessons(
    tuple(CAPABILITIES.values()),
    Habits(),
    Training(steps=STEPS, skill=0.25, style=0.25, lr=1e-3, warmup=1, seed=3),
    questions=2,
)

Weights = dict[str, torch.Tensor]


class StoppedError(Exception):
    pass


def new_model() -> Qwen3VLForConditionalGeneration:
    torch.manual_seed(0)
    return embed(LlamaForCausalLM(LlamaConfig(**SIZES)), processor().tokenizer)


def taught(checkpoint: Path, *, stop_at: int | None = None) -> Weights:
    model = new_model()

    def tell(done: int, total: int) -> None:
        assert total == STEPS
        if done == stop_at:
            raise StoppedError

    teach(model, processor(), LESSONS, checkpoint, tell, every=2)
    return model.state_dict()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return taught(tmp_path_factory.mktemp("straight") / "lessons.pt")


def test_projections_learn_and_nothing_else(straight: Weights) -> None:
    before = new_model().state_dict()
    moved = {name for name, weight in straight.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "language_model.layers" in name and "_proj." in name}


def test_scaled_projections_move_as_far_as_the_others_in_their_own_measure(straight: Weights) -> None:
    before = new_model().state_dict()
    for name in before:
        if "language_model.layers" in name and "_proj." in name:
            scale = 1.0 if name.split(".")[-2] in MODULES else SCALE
            furthest = (straight[name] - before[name]).abs().max() / scale
            # Each of the first steps of Adam is about lr long, and the learning rate falls.
            assert 0.5e-3 < furthest < STEPS * 1e-3


def test_a_stage_that_was_stopped_makes_the_same_weights(straight: Weights, tmp_path: Path) -> None:
    checkpoint = tmp_path / "lessons.pt"
    with pytest.raises(StoppedError):
        taught(checkpoint, stop_at=3)  # after the checkpoint of two steps, in the middle of what follows
    resumed = taught(checkpoint)
    assert all(torch.equal(weight, resumed[name]) for name, weight in straight.items())

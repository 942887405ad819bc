"""What a step draws and how its terms are made up, without an engine. Whole steps are in `tests/engine/test_loop`."""

from collections import Counter
from typing import cast

import numpy as np
import pytest

from clients.client import AsyncClient
from trainer.data.generated import prompts
from trainer.loop import StepContext, TrainingSet, prompts_by_capability, prompts_of, stream_of, with_advantage
from trainer.parts import Completion, Prompt, Rollout, loss_term
from trainer.plan.steps import Step
from trainer.recipe import LossConfig, RolloutConfig
from trainer.recipe.method import Mix
from trainer.rewards import Rule
from trainer.rewards.pool import RewardPool

PROMPT = Prompt("id", "text", (), "4")


def context(*, count: int = 8, mix: Mix = "equal", **sizes: int) -> StepContext:
    """Training sets of these sizes. Nothing here asks the client or the pool."""
    return StepContext(
        cast(AsyncClient, None),
        cast(RewardPool, None),
        {
            name: TrainingSet(prompts("text", label=name, split="train", size=size, seed=1), Rule("exact"), 60.0)
            for name, size in sizes.items()
        },
        decode=lambda ids: "",
        seed=3,
        sampling=RolloutConfig(prompts=count),
        loss=LossConfig(),
        mix=mix,
    )


def completion(length: int = 3) -> Completion:
    return Completion(np.arange(length), np.zeros(length, np.float32))


@pytest.mark.parametrize(
    ("count", "mix", "sizes", "shares"),
    [
        (8, "equal", {"a": 3, "b": 300}, [4, 4]),
        (8, "equal", {"a": 9, "b": 9, "c": 9}, [3, 3, 2]),
        (8, "proportional", {"a": 10, "b": 30}, [2, 6]),
        (7, "proportional", {"a": 10, "b": 10, "c": 20}, [2, 2, 3]),
        (3, "proportional", {"a": 1, "b": 50}, [0, 3]),
    ],
)
def test_a_batch_is_shared_out_by_largest_remainders(count: int, mix: Mix, sizes: dict, shares: list[int]) -> None:
    step = Step("mixed", 1, capabilities=tuple(sizes))
    assert prompts_by_capability(step, context(count=count, mix=mix, **sizes)) == shares
    assert sum(shares) == count


def test_steps_walk_through_all_prompts_before_one_comes_again() -> None:
    data = context(text=12)
    drawn = [
        prompt.id for number in (1, 2, 3) for prompt in prompts_of(Step("text", number), data, "text", "native", 4)
    ]
    assert len(set(drawn)) == 12
    again = prompts_of(Step("text", 4), data, "text", "native", 4)
    assert Counter(drawn + [prompt.id for prompt in again]).most_common(1)[0][1] == 2


def test_what_a_step_draws_follows_from_its_names_alone() -> None:
    data = context(text=50)
    draw = lambda step, term="native": [prompt.id for prompt in prompts_of(step, data, "text", term, 8)]  # noqa: E731
    assert draw(Step("text", 2)) == draw(Step("text", 2))
    assert draw(Step("text", 2)) != draw(Step("image", 2))
    assert draw(Step("text", 2)) != draw(Step("text", 2), "teacher")
    assert draw(Step("text", 2)) != draw(Step("text", 2, seed=4))
    # Branches of a comparison draw alike under one stream and seed, whatever they are called.
    assert draw(Step("s3-copd3-text", 2, seed=3, stream="text")) == draw(Step("text", 2))


def test_no_two_terms_of_a_step_share_a_stream() -> None:
    step = Step("image", 1)
    streams = {stream_of(step, term, name) for term in ("native", "text", "video") for name in ("text", "image")}
    assert len(streams) == 6


def test_an_advantage_is_the_same_for_every_token() -> None:
    assert with_advantage(completion(), None).advantages_C is None
    advantages_C = with_advantage(completion(), -0.5).advantages_C
    assert advantages_C is not None
    assert advantages_C.tolist() == [-0.5] * 3
    assert advantages_C.dtype == np.float32


def test_a_term_counts_only_the_completions_that_it_learns_from() -> None:
    scored, unscorable = with_advantage(completion(3), 0.0), completion(5)
    rollouts = [
        Rollout(PROMPT, np.arange(4), group) for group in ((scored, unscorable), (unscorable,), (scored, scored))
    ]
    term = loss_term("native", rollouts)
    assert [len(rollout.completions) for rollout in term.rollouts] == [1, 2]
    assert (term.num_sequences, term.num_tokens) == (3, 9)

"""Tasks of reasoning-gym as prompts, and their own score."""

import json

import pytest

from adapters.errors import UserError
from service.media import Limits
from trainer.data.held_out import held_out_prompts, training_prompts
from trainer.data.prompts import Prompts
from trainer.data.sources import open_prompts
from trainer.recipe import CapabilityConfig, ReasoningGymData, RewardConfig
from trainer.rewards import RewardItem, Rule, judge, load

SUMS = ReasoningGymData(type="reasoning-gym", name="chain_sum", size=40, config={"max_terms": 2})
CAPABILITY = CapabilityConfig(data=SUMS, reward=RewardConfig(kind="reasoning-gym"))


def questions(prompts: Prompts) -> list[str]:
    return [prompts[index].messages[0]["content"][0].get("text", "") for index in range(len(prompts))]


def opened(run_seed: int, **changes) -> Prompts:
    return open_prompts("sums", SUMS.model_copy(update=changes), seed=run_seed, limits=Limits())


def test_a_task_gives_as_many_different_questions_as_it_is_told() -> None:
    prompts = opened(0)
    assert len(set(questions(prompts))) == len(prompts) == 40
    entry = json.loads(prompts[0].answer)
    assert entry["question"] == questions(prompts)[0]
    assert entry["metadata"]["source_dataset"] == "chain_sum"


def test_a_seed_repeats_its_questions_and_another_has_others() -> None:
    assert opened(0).fingerprint == opened(0).fingerprint != opened(1).fingerprint
    assert len(set(questions(opened(0))) & set(questions(opened(1)))) < 10
    assert opened(0, seed=5).fingerprint == opened(1, seed=5).fingerprint


@pytest.mark.parametrize("draw", [0, 1])
def test_held_out_questions_are_in_no_seeds_training(draw: int) -> None:
    # A digit each: so few questions that two seeds would share them.
    few = SUMS.model_copy(update={"size": 300, "config": {"max_terms": 2, "max_digits": 1}})
    capability = CAPABILITY.model_copy(update={"data": few})
    held_out = held_out_prompts("sums", capability, 12, limits=Limits(), draw=draw)
    assert len(held_out) == 12
    for seed in (0, 1000):
        trained = training_prompts("sums", capability, 12, seed=seed, limits=Limits())
        assert 50 < len(trained) < 300
        assert not set(questions(held_out)) & set(questions(trained))


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (r"So \boxed{RIGHT}", 1.0),
        ("<answer> RIGHT </answer>", 1.0),
        ("RIGHT", 1.0),
        (r"RIGHT? No, \boxed{-9999}", 0.0),
        ("", 0.0),
    ],
)
def test_the_task_scores_what_a_completion_gives_as_its_answer(completion: str, value: float) -> None:
    answer = opened(0)[0].answer
    item = RewardItem(completion.replace("RIGHT", json.loads(answer)["answer"]), answer)
    assert judge(load(Rule("reasoning-gym")), item).value == value


@pytest.mark.parametrize("answer", ["42", "{}", '{"metadata": {}}', "[1]"])
def test_an_answer_that_is_no_entry_is_unscorable(answer: str) -> None:
    scored = judge(load(Rule("reasoning-gym")), RewardItem("42", answer))
    assert scored.value is None
    assert "needs an entry of a task as JSON" in str(scored.why)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "chain_sums"}, "capabilities.sums.data.name: reasoning-gym has no task 'chain_sums'; did you mean"),
        ({"name": "zzz"}, "reasoning-gym has no task 'zzz'; it has "),
        ({"config": {"terms": 3}}, "capabilities.sums.data.config: chain_sum refuses it: "),
        ({"config": {"min_terms": -1}}, "capabilities.sums.data.config: chain_sum refuses it: min_terms must be"),
        ({"name": "rearc", "config": {}}, "rearc scores its entries otherwise after JSON; take another task"),
    ],
)
def test_a_task_that_cannot_be_asked_is_told(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        opened(0, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_task_is_scored_by_nothing_else() -> None:
    with pytest.raises(ValueError, match=r'set reward\.kind = "reasoning-gym", or take other data'):
        CapabilityConfig(data=SUMS, reward=RewardConfig(kind="exact"))

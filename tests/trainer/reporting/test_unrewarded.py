"""When a person is told that a branch cannot learn, and what."""

import numpy as np
import pytest

from trainer.parts import Completion, Prompt, Rollout
from trainer.reporting.unrewarded import unrewarded
from trainer.rewards import Rule

RULES = {"text": Rule("math", format_share=0.1), "own": Rule("mine:judge")}


def rollout(*rewards: float | None, capability: str = "text", text: str = "I am a poem") -> Rollout:
    completions = (Completion(np.zeros(1, np.int64), np.zeros(1, np.float32), text, False, value) for value in rewards)
    return Rollout(Prompt("id", capability, (), "4"), np.zeros(1, np.int64), tuple(completions))


def test_a_branch_whose_rewards_are_all_the_lowest_is_told_with_an_answer() -> None:
    text = unrewarded("text", [rollout(0.0, 0.0, text="la " * 40), rollout(0.0, None)], RULES)
    assert text is not None
    assert text.startswith("text cannot learn yet: all 3 completions of its first step got 0. One is 'la la la")
    assert "la ...'; its reward, math, looks for a result that equals the answer" in text
    assert text.endswith("coevo check RECIPE tries the reward on the data's own answers")
    custom = unrewarded("b", [rollout(-1.0, -1.0, capability="own")], RULES)
    assert custom is not None
    assert "got -1." in custom
    assert "looks for what mine:judge takes" in custom


def test_the_share_for_the_form_is_no_right_answer() -> None:
    assert unrewarded("text", [rollout(0.1, 0.1)], RULES) is not None


@pytest.mark.parametrize("rewards", [(0.0, 0.1), (1.0, 1.0), (0.0, 1.0), (None, None)])
def test_rewards_that_differ_or_are_right_say_nothing(rewards: tuple[float | None, ...]) -> None:
    assert unrewarded("text", [rollout(*rewards)], RULES) is None

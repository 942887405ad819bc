import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rollout.advantages import group_advantages, negative_advantages, teacher_advantages

REWARDS = st.lists(st.one_of(st.none(), st.floats(-1, 1, allow_subnormal=False)), max_size=12)


def test_what_better_and_worse_than_the_others_is_worth():
    assert group_advantages([1.0, 0.0, 0.0, 1.0], std=False) == [0.5, -0.5, -0.5, 0.5]
    deviation = (4 * 0.25 / 3) ** 0.5  # with n - 1
    expected = 0.5 / (deviation + 1e-4)
    assert group_advantages([1.0, 0.0, 0.0, 1.0], std=True) == pytest.approx([expected, -expected, -expected, expected])


@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, 0.9, 1.0])
def test_a_group_of_equals_teaches_exactly_nothing(std, reward):
    """Three times 0.1 have another mean than 0.1."""
    for size in range(2, 33):
        assert group_advantages([reward] * size, std=std) == [0.0] * size


@pytest.mark.parametrize("std", [True, False])
def test_who_was_not_judged_leaves_the_group(std):
    judged = group_advantages([1.0, 0.0, 0.3], std=std)
    assert group_advantages([None, 1.0, 0.0, None, 0.3], std=std) == [None, judged[0], judged[1], None, judged[2]]


@pytest.mark.parametrize("std", [True, False])
def test_one_alone_has_nothing_to_be_compared_with(std):
    assert group_advantages([None, 0.7, None], std=std) == [None, 0.0, None]
    assert group_advantages([None, None], std=std) == [None, None]
    assert group_advantages([], std=std) == []


@given(rewards=REWARDS, shift=st.floats(-10, 10))
def test_only_differences_of_rewards_count(rewards, shift):
    for std in (True, False):
        moved = group_advantages([None if r is None else r + shift for r in rewards], std=std)
        assert moved == pytest.approx(group_advantages(rewards, std=std), abs=1e-6)


@given(rewards=REWARDS, scale=st.floats(0.1, 10))
def test_the_unit_of_rewards_counts_without_std_alone(rewards, scale):
    """With it, up to the 1e-4 that keeps equal rewards from a division by zero."""
    scaled = [None if r is None else scale * r for r in rewards]
    expected = [None if a is None else scale * a for a in group_advantages(rewards, std=False)]
    assert group_advantages(scaled, std=False) == pytest.approx(expected, abs=1e-9)
    judged = [r for r in rewards if r is not None]
    if len(judged) > 1 and np.std(judged) > 0.1:
        expected = group_advantages(rewards, std=True)
        assert group_advantages(scaled, std=True) == pytest.approx(expected, abs=0.04)


@given(rewards=REWARDS)
def test_advantages_of_a_group_cancel_and_keep_the_order(rewards):
    for std in (True, False):
        advantages = group_advantages(rewards, std=std)
        pairs = [(r, a) for r, a in zip(rewards, advantages, strict=True) if r is not None and a is not None]
        assert len(pairs) == len([r for r in rewards if r is not None])
        assert sum(a for _, a in pairs) == pytest.approx(0, abs=1e-6)
        assert all(a <= b for (r, a), (s, b) in itertools.pairwise(pairs) if r < s)


def test_a_teacher_is_worth_the_logarithm_of_its_ratio_within_bounds():
    teacher_C = np.array([-1, -5, -30, -0.5], np.float32)
    student_C = np.array([-3, -5, -1, -40], np.float32)
    advantages = teacher_advantages(teacher_C - student_C, beta=0.5, clamp=10)
    assert advantages.tolist() == [1.0, 0.0, -5.0, 5.0]
    assert advantages.dtype == np.float32


def test_a_branch_that_agrees_with_itself_is_worth_exactly_nothing():
    scores_C = np.random.default_rng(0).normal(-3, 2, 100).astype(np.float32)
    assert not teacher_advantages(scores_C - scores_C.copy(), beta=1.0, clamp=10).any()


def test_the_control_pushes_unlikely_tokens_down():
    student_C = np.log(np.array([0.05, 0.09, 0.11, 0.9], np.float32))
    advantages = negative_advantages(student_C, advantage=0.1, probability=0.1)
    assert advantages.tolist() == pytest.approx([-0.1, -0.1, 0, 0])
    assert advantages.dtype == np.float32

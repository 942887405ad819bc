import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rewards import Scored
from trainer.rewards.batch import RewardBatch


@given(num_items=st.integers(0, 100), num_children=st.integers(1, 8), seed=st.integers(0, 2**32))
def test_every_item_gets_one_result_whatever_the_children_do(num_items: int, num_children: int, seed: int) -> None:
    chance = random.Random(seed)  # not drawn fault by fault: that takes hypothesis a minute
    batch = RewardBatch(num_items, num_children)
    killers = {index for index in range(num_items) if chance.random() < 0.1}
    while batch.num_unfinished:
        work = batch.take()
        assert work, "unfinished items that nobody works on must be in the queue"
        while work:
            if chance.random() < 0.1:
                batch.put_back(work)
                break
            if work[0] in killers:
                batch.fail(work, "killed")
                break
            batch.settle(work[0], Scored(float(work.pop(0))))
    assert batch.take() == []
    for index, scored in enumerate(batch.results()):
        assert scored == (Scored(None, "killed") if index in killers else Scored(float(index)))


def test_a_failed_item_comes_again_after_the_others_and_only_once() -> None:
    batch = RewardBatch(3, 2)
    first, second, third = batch.take(), batch.take(), batch.take()
    assert (first, second, third) == ([0], [1], [2])
    batch.fail(first, "died")
    batch.settle(1, Scored(1.0))
    batch.settle(2, Scored(1.0))
    assert batch.take() == [0]
    batch.fail([0], "died again")
    assert batch.results()[0] == Scored(None, "died again")
    assert batch.num_unfinished == 0


def test_those_behind_a_failed_item_come_before_it() -> None:
    batch = RewardBatch(8, 1)
    assert batch.take() == [0, 1, 2, 3]
    batch.fail([1, 2, 3], "died")
    assert batch.take()[:2] == [2, 3]


def test_a_reward_that_cannot_be_loaded_ends_the_batch() -> None:
    batch = RewardBatch(4, 2)
    for _ in range(3):
        assert batch.num_unfinished == 4
        batch.fail_to_load(batch.take(), "no such luck")
    assert batch.results() == [Scored(None, "no such luck")] * 4
    assert batch.take() == []


def test_giving_up_keeps_the_results_that_are_there() -> None:
    batch = RewardBatch(2, 1)
    batch.settle(1, Scored(0.5))
    batch.give_up("late")
    assert batch.results() == [Scored(None, "late"), Scored(0.5)]


@given(num_items=st.integers(1, 1000), num_children=st.integers(1, 8), left_s=st.floats(0.01, 100))
def test_a_first_try_has_its_share_and_leaves_time_for_a_second(
    num_items: int, num_children: int, left_s: float
) -> None:
    batch = RewardBatch(num_items, num_children)
    allowance = batch.allowance(0, left_s)
    assert allowance <= left_s / 2
    share = left_s * num_children / num_items
    assert allowance == pytest.approx(min(left_s / 2, max(share, left_s / 8)))


def test_the_last_try_may_take_all_the_time() -> None:
    batch = RewardBatch(1, 2)
    batch.fail(batch.take(), "slow")
    assert batch.allowance(0, 10.0) == 10.0

"""The ways of answering by name and kind."""

import pytest

from trainer.evaluation.ways import Decoding, kind_of, ways_of
from trainer.recipe import AnswersConfig


def test_the_way_that_decides_comes_first_and_names_of_before_stay():
    answers = AnswersConfig.model_validate({"samples": 4, "primary": {}})
    assert ways_of(answers) == (
        Decoding("avg@8 T0.7", 8, 0.7, 0.8),
        Decoding("greedy", 1, 0.0, 1.0),
        Decoding("avg@4", 4, 1.0, 1.0),
    )
    assert [kind_of(way.name) for way in ways_of(answers)] == ["primary", "greedy", "sampled"]
    assert [way.name for way in ways_of(AnswersConfig(samples=2))] == ["greedy", "avg@2"]


def test_as_many_samples_in_two_ways_are_two_ways():
    answers = AnswersConfig.model_validate({"samples": 8, "temperature": 0.7, "primary": {}})
    assert len({way.name for way in ways_of(answers)}) == 3


def test_the_primary_answers_may_be_the_only_ones_and_are_unsaid_while_unset():
    alone = AnswersConfig.model_validate({"greedy": False, "primary": {"samples": 2}})
    assert [way.name for way in ways_of(alone)] == ["avg@2 T0.7"]
    with pytest.raises(ValueError, match="no answer would be given"):
        AnswersConfig(greedy=False)
    assert "primary" not in AnswersConfig().model_dump()

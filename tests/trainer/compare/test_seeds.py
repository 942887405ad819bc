"""The groups of a comparison's seeds, their blind level, and the file of a seed's answers.

The whole of it: tests/e2e/test_compare.py.
"""

import json
from pathlib import Path

import pytest

from trainer.compare.answers import write_items
from trainer.compare.choices import Rates
from trainer.compare.rates import systems_by_rate
from trainer.compare.seeds import Part, blind_levels, groups, unanswered
from trainer.evaluation.exams import ExamAnswer, exams
from trainer.recipe.file import load


def test_seeds_are_trained_in_groups_of_the_size_given():
    assert groups([4, 0, 2, 3], 1) == [[0], [2], [3], [4]]
    assert groups([4, 0, 2], 2) == [[0, 2], [4]]
    assert groups([], 2) == []


def test_the_blind_level_is_the_mean_over_the_seeds_questions():
    recipe = load(Path("recipes/miniature/compare.toml"), ["evaluation.questions=24"])
    (first, *_), (second, *_) = (exams(recipe, draw=draw) for draw in (0, 1))
    assert first.blind != second.blind
    levels = blind_levels(recipe, [0, 1])
    assert list(levels) == ["text", "image", "video"]
    assert first.blind is not None
    assert second.blind is not None
    assert levels["text"] == pytest.approx((first.blind + second.blind) / 2)


def rates_of(**chosen: float) -> Rates:
    return Rates({system: {"0.001": 0.5, "0.0005": 0.5} for system in chosen}, chosen)


def test_a_rate_trains_what_chose_it_and_the_experts_of_all_capabilities():
    words = 'comparison.systems=["copd2", "mixed3"]', "comparison.scales=[1.0]", "comparison.rates=[5e-4, 1e-3]"
    recipe = load(Path("recipes/miniature/compare.toml"), words)
    apart = rates_of(experts=5e-4, merge2=5e-4, merge3=1e-3, copd2=5e-4, mixed3=1e-3)
    # Beside copd2 alone the third capability would have no expert.
    assert list(systems_by_rate(recipe, apart)) == [(5e-4, ()), (5e-4, ("copd2",)), (1e-3, ("mixed3",))]
    alike = rates_of(experts=1e-3, merge2=1e-3, merge3=1e-3, copd2=1e-3, mixed3=1e-3)
    assert list(systems_by_rate(recipe, alike)) == [(1e-3, ("copd2", "mixed3"))]


def test_a_result_is_examined_at_its_systems_rate_alone(tmp_path: Path):
    recipe = load(Path("recipes/miniature/compare.toml"), ['comparison.systems=["mixed3"]', "optimiser.lr=1e-3"])
    chosen = rates_of(experts=5e-4, merge2=5e-4, merge3=1e-3, mixed3=1e-3)
    assert {result.system for result in unanswered(Part(recipe, tmp_path, chosen), tmp_path, 0)} == {"merge3", "mixed3"}
    assert {result.system for result in unanswered(Part(recipe, tmp_path), tmp_path, 0)} == {
        "experts",
        "merge3",
        "mixed3",
    }


def test_answers_in_full_stand_once_for_each_model(tmp_path: Path):
    def items(model: str, text: str) -> list[ExamAnswer]:
        return [ExamAnswer(model, "text", "greedy", number, "q", 0, text, 1.0, None, 3, False) for number in range(2)]

    path = tmp_path / "items" / "seed-0.jsonl"
    write_items(path, items("base", "a"))
    write_items(path, items("merged", "b"))
    write_items(path, items("merged", "c"))  # an exam that was stopped before its rewards were written is taken anew
    texts = [(line["model"], line["text"]) for line in map(json.loads, path.read_text().splitlines())]
    assert texts == [("base", "a"), ("base", "a"), ("merged", "c"), ("merged", "c")]

"""What is chosen by validation questions, and by which."""

from pathlib import Path

import pytest

from adapters.names import Ref
from trainer.compare.choices import (
    ScaledModel,
    chosen_rates,
    home_of,
    is_system,
    key_of,
    on_validation,
    system_accuracies,
    tried_scales,
)
from trainer.evaluation.exams import ExamResult, exams
from trainer.evaluation.intervals import Interval
from trainer.plan.make import make_plan
from trainer.plan.results import Result, planned_results
from trainer.recipe import ComparisonConfig
from trainer.recipe.file import load

COMPARE = Path("recipes/miniature/compare.toml")


def test_scales_are_chosen_by_questions_that_nothing_is_reported_on():
    recipe = load(COMPARE, ["evaluation.questions=24", "evaluation.answers.primary=null"])
    reported, validation = exams(recipe), exams(on_validation(recipe))
    assert [exam.name for exam in validation] == [exam.name for exam in reported] == ["text", "image", "video"]
    for chosen_by, reported_on in zip(validation, reported, strict=True):
        assert [way.name for way in chosen_by.ways] == ["greedy"]
        ids = [{exam.prompts[index].id for index in range(24)} for exam in (chosen_by, reported_on)]
        assert len(chosen_by.prompts) == len(reported_on.prompts) == len(ids[0]) == len(ids[1]) == 24
        assert not ids[0] & ids[1]


def test_a_merge_has_the_scale_that_suits_its_branches():
    refs = (Ref("s0-experts-text", 10), Ref("s0-experts-image", 10))
    pair = Result("merge2", "merged", 0, refs, ("text", "image"))
    accuracies = {"text": (0.75, 0.5), "image": (0.5, 0.25), "video": (0.0, 1.0)}
    results = [
        ExamResult(
            f"s0-merge2-merged-{scale}",
            name,
            name,
            "greedy",
            Interval(by_scale[number], 0.1),
            Interval(0.0, 0.1),
            None,
            9,
            0,
            0,
            2,
        )
        for name, by_scale in accuracies.items()
        for number, scale in enumerate((100, 200))
    ]
    assert tried_scales(pair, ("text", "image"), [1.0, 2.0], results) == {1.0: 0.625, 2.0: 0.375}


def test_choices_are_made_by_the_way_that_decides_on_as_many_questions_as_are_said():
    changes = ["evaluation.answers.primary.samples=4", "comparison.validation=7"]
    for exam in exams(on_validation(load(COMPARE, changes))):
        assert [way.name for way in exam.ways] == ["avg@4 T0.7"]
        assert len(exam.prompts) == 7


def test_every_system_is_tried_and_judged_by_what_it_is_for():
    systems = ("copd2", "static_v2t", "mopd", "mixed3-tokens", "merge3-tokens", "pilot")
    recipe = load(COMPARE, ["method.cycles=2"])
    recipe = recipe.model_copy(update={"comparison": ComparisonConfig(seeds=1, systems=systems)})
    pair, whole = ("text", "image"), ("text", "image", "video")
    homes = {
        key_of(result): home_of(recipe, result) for result in planned_results(make_plan(recipe)) if is_system(result)
    }
    assert homes == {
        "experts-text": ("text",),
        "experts-image": ("image",),
        "experts-video": ("video",),
        "merge2": pair,
        "merge3": whole,
        "merge3-tokens": whole,
        "copd2": pair,
        "static_v2t": pair,
        "mopd": whole,
        "mixed3-tokens": whole,
    }


def test_a_systems_rate_is_the_one_of_its_best_scale():
    experts = [Result("experts", name, 0, (Ref(f"s0-experts-{name}", 9),), (name,)) for name in ("text", "image")]
    pair = Result("merge2", "merged", 0, tuple(ref for expert in experts for ref in expert.refs), ("text", "image"))
    at_low, at_high = (
        {
            "experts-text": ScaledModel(1.0, {"1": text, "2": 0.0}, {}),
            "experts-image": ScaledModel(1.0, {"1": 0.5, "2": 0.25}, {}),
            "merge2": ScaledModel(2.0, {"1": 0.25, "2": merged}, {}),
        }
        for text, merged in ((1.0, 0.5), (0.5, 0.75))
    )
    accuracies = {lr: system_accuracies(models, [*experts, pair]) for lr, models in ((1e-4, at_low), (1e-3, at_high))}
    assert accuracies[1e-4] == pytest.approx({"experts": 0.75, "merge2": 0.5})
    assert chosen_rates(accuracies) == {"experts": 1e-4, "merge2": 1e-3}
    assert chosen_rates({2.0: {"a": 0.5}, 1.0: {"a": 0.5}}) == {"a": 1.0}, "of equal ones the lowest"

from pathlib import Path

from adapters.names import Ref
from trainer.compare.choices import chosen_rates, is_system, key_of, on_validation, tried_scales
from trainer.evaluation.exams import ExamResult, exams
from trainer.evaluation.intervals import Interval
from trainer.plan.comparison import Result
from trainer.recipe.file import load


def test_scales_are_chosen_greedily_by_questions_that_nothing_is_reported_on():
    recipe = load(Path("recipes/miniature/compare.toml"), ["evaluation.questions=24"])
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

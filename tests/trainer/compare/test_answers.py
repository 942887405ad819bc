from pathlib import Path

from adapters.names import Ref
from trainer.compare.answers import on_validation, tried_scales
from trainer.evaluation.exams import ExamResult, exams
from trainer.evaluation.intervals import Interval
from trainer.plan.comparison import Result
from trainer.recipe.file import load


def test_scales_are_chosen_by_the_likeliest_answers_to_questions_that_nothing_is_reported_on():
    recipe = load(Path("recipes/miniature/compare.toml"), ["evaluation.questions=24"])
    reported, asked = exams(recipe), exams(on_validation(recipe))
    assert [exam.name for exam in asked] == [exam.name for exam in reported] == ["text", "image", "video"]
    for one, other in zip(asked, reported, strict=True):
        assert [way.name for way in one.ways] == ["greedy"]
        ids = [{exam.prompts[place].id for place in range(len(exam.prompts))} for exam in (one, other)]
        assert len(ids[0]) == len(ids[1]) == 24
        assert not ids[0] & ids[1]


def test_a_merge_has_the_scale_that_suits_what_its_own_branches_are_for():
    pair = Result("merge2", "merged", 0, (Ref("s0-x-text", 10), Ref("s0-x-image", 10)))
    accuracies = {"text": (0.75, 0.5), "image": (0.5, 0.25), "video": (0.0, 1.0)}
    answered = [
        ExamResult(
            f"s0-merge2-merged-{scale}",
            name,
            name,
            "greedy",
            Interval(of[number], 0.1),
            Interval(0.0, 0.1),
            None,
            9,
            0,
            0,
            2,
        )
        for name, of in accuracies.items()
        for number, scale in enumerate((100, 200))
    ]
    assert tried_scales(pair, [1.0, 2.0], answered) == {1.0: 0.625, 2.0: 0.375}

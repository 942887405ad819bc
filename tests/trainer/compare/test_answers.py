from pathlib import Path

from trainer.compare.answers import on_validation
from trainer.evaluate import exams
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

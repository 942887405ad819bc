"""Which questions an exam has, and what its answers say, without a service."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from adapters.errors import UserError
from service.media import Limits
from trainer.data.generated import prompts
from trainer.data.held_out import held_out_prompts, training_prompts
from trainer.evaluation.exams import (
    Decoding,
    Exam,
    ExamAnswer,
    blind_level,
    exam_results,
    exams,
    mean_results,
    question_means,
)
from trainer.evaluation.intervals import interval
from trainer.recipe import CapabilityConfig, Columns, DatasetData, MiniatureData, Recipe, RewardConfig
from trainer.reporting.tables import lines
from trainer.rewards import Rule

MINIATURE = {"data": {"type": "miniature", "name": "text"}, "reward": {"kind": "exact"}}


def recipe(**changes) -> Recipe:
    plain = {
        "name": "r",
        "base": {"name": "miniature"},
        "capabilities": {"text": MINIATURE},
        "method": {"kind": "rlvr"},
    }
    return Recipe.model_validate(plain | {"evaluation": {"questions": 20, "overlap_prompts": 4}} | changes)


def file_of(rows: int, folder: Path) -> CapabilityConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(rows)))
    return CapabilityConfig(
        data=DatasetData(type="dataset", name=str(path), columns=Columns()), reward=RewardConfig(kind="math")
    )


def ids(prompts) -> list[str]:
    return [prompts[index].id for index in range(len(prompts))]


def test_rows_that_are_measured_on_are_not_trained_on(tmp_path: Path) -> None:
    capability = file_of(100, tmp_path)
    held = ids(held_out_prompts("sums", capability, 12, limits=Limits()))
    left = ids(training_prompts("sums", capability, 12, seed=5, limits=Limits()))
    assert (len(held), len(left)) == (12, 88)
    assert not set(held) & set(left)
    assert ids(held_out_prompts("sums", capability, 12, limits=Limits(), most=5)) == held[:5]


def test_at_most_a_fifth_of_the_rows_is_held_out(tmp_path: Path) -> None:
    capability = file_of(20, tmp_path)
    assert len(held_out_prompts("sums", capability, 256, limits=Limits())) == 4
    assert len(training_prompts("sums", capability, 256, seed=0, limits=Limits())) == 16


def test_equal_rows_are_on_the_same_side(tmp_path: Path) -> None:
    capability = file_of(20, tmp_path)
    path = Path(capability.data.name)
    path.write_text(path.read_text() * 3)
    held = ids(held_out_prompts("sums", capability, 4, limits=Limits()))
    left = ids(training_prompts("sums", capability, 4, seed=0, limits=Limits()))
    assert len(held) == len(set(held)) == 4
    assert len(left) == 48
    assert not set(held) & set(left)


def test_too_few_rows_to_hold_any_out_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"capabilities\.sums\.data: 4 rows are too few .*\.held_out"):
        held_out_prompts("sums", file_of(4, tmp_path), 256, limits=Limits())


def test_data_of_its_own_leaves_all_rows_to_train_on(tmp_path: Path) -> None:
    capability = file_of(20, tmp_path)
    with_data = capability.model_copy(update={"held_out": MiniatureData(type="miniature", name="text", size=7)})
    assert len(training_prompts("sums", with_data, 5, seed=0, limits=Limits())) == 20
    assert len(held_out_prompts("sums", with_data, 5, limits=Limits())) == 5
    assert len(held_out_prompts("sums", with_data, 500, limits=Limits())) == 7


def test_the_miniature_is_measured_on_its_validation_split_whatever_the_seed() -> None:
    (exam,), (of_other_seed,) = (exams(recipe(seed=seed)) for seed in (1, 2))
    assert ids(exam.prompts) == ids(of_other_seed.prompts)
    assert ids(exam.prompts) == ids(prompts("text", label="text", split="validation", size=20, seed=1000))
    assert [way.name for way in exam.ways] == ["greedy", "avg@4"]
    (few,) = exams(recipe(), 3)
    assert ids(few.prompts) == ids(exam.prompts)[:3]


def test_another_draw_has_other_questions_of_the_miniature_alone(tmp_path: Path) -> None:
    (first,), (second,), (again,) = (exams(recipe(), draw=draw) for draw in (0, 1, 1))
    assert ids(first.prompts) == ids(exams(recipe())[0].prompts)
    assert ids(second.prompts) == ids(again.prompts)
    assert not set(ids(first.prompts)) & set(ids(second.prompts))
    capability = file_of(20, tmp_path)
    assert ids(held_out_prompts("sums", capability, 12, limits=Limits(), draw=1)) == ids(
        held_out_prompts("sums", capability, 12, limits=Limits())
    )


def test_the_miniature_is_not_measured_on_its_training_split() -> None:
    data = {"type": "miniature", "name": "text", "split": "validation"}
    (exam,) = exams(recipe(capabilities={"text": MINIATURE | {"data": data}}))
    assert ids(exam.prompts) == ids(prompts("text", label="text", split="test", size=20, seed=1000))


def test_the_form_of_an_answer_does_not_count() -> None:
    (exam,) = exams(recipe())
    assert exam.rule.format_share == 0


def test_a_benchmark_is_an_exam_of_its_own() -> None:
    sets = {"hard": {"capability": "text", "data": {"type": "miniature", "name": "text", "level": 2, "size": 9},
                     "reward": {"kind": "exact"}, "answers": {"greedy": False, "samples": 2}}}  # fmt: skip
    plain, hard = exams(recipe(evaluation={"questions": 4, "overlap_prompts": 4, "sets": sets}))
    assert (plain.name, plain.capability, len(plain.prompts)) == ("text", "text", 4)
    assert (hard.name, hard.capability, len(hard.prompts)) == ("hard", "text", 9)
    assert [way.name for way in hard.ways] == ["avg@2"]
    with pytest.raises(UserError, match=r"evaluation\.sets\.text: a capability has that name"):
        exams(recipe(evaluation={"questions": 4, "overlap_prompts": 4, "sets": {"text": sets["hard"]}}))


def test_the_blind_level_of_the_miniature_is_low_and_its_own() -> None:
    for name in ("text", "image", "video"):
        level = blind_level(MiniatureData(type="miniature", name=name, split="validation"), 256)
        assert 0.02 < level < 0.35
        assert level == blind_level(MiniatureData(type="miniature", name=name, split="validation"), 256)


GREEDY, TWICE = Decoding("greedy", 1, 0.0, 1.0), Decoding("avg@2", 2, 1.0, 1.0)


def exam(name: str, capability: str, *ways: Decoding) -> Exam:
    questions = prompts("text", label="text", split="validation", size=4, seed=1)
    return Exam(name, capability, questions, Rule("exact"), 60.0, ways, 0.1)


def answered(model: str, exam: str, way: str, *rewards: tuple[float | None, ...]) -> list[ExamAnswer]:
    return [
        ExamAnswer(model, exam, way, index, f"q{index}", number, "text", reward, None, 5, False)
        for index, of_question in enumerate(rewards)
        for number, reward in enumerate(of_question)
    ]


def test_gains_are_paired_by_question() -> None:
    answers = [
        *answered("base", "text", "greedy", (1.0,), (0.0,), (1.0,), (0.0,)),
        *answered("text@4", "text", "greedy", (1.0,), (1.0,), (1.0,), (0.0,)),
    ]
    base, expert = exam_results(answers, [exam("text", "text", GREEDY)])
    assert (base.accuracy.mean, expert.accuracy.mean) == (0.5, 0.75)
    assert expert.gain == interval(np.array([0.0, 1.0, 0.0, 0.0]))
    assert (base.gain.mean, base.gain.error) == (0.0, 0.0)
    assert expert.blind == 0.1


def test_answers_that_nobody_judged_are_in_no_mean_and_are_counted() -> None:
    answers = answered("base", "text", "avg@2", (1.0, None), (0.0, 1.0), (None, None), (1.0, 1.0))
    means = question_means(answers, 4)
    assert means[[0, 1, 3]].tolist() == [1.0, 0.5, 1.0]
    assert math.isnan(means[2])
    (result,) = exam_results(answers, [exam("text", "text", TWICE)])
    assert result.accuracy.mean == pytest.approx(2.5 / 3)
    assert result.unscorable == 3 / 8


def test_every_capability_counts_alike_in_the_mean() -> None:
    graded = [exam("text", "text", GREEDY), exam("hard", "text", GREEDY), exam("image", "image", GREEDY, TWICE)]
    answers = [
        *answered("base", "text", "greedy", *[(1.0,)] * 4),
        *answered("base", "hard", "greedy", *[(0.0,)] * 4),
        *answered("base", "image", "greedy", *[(0.0,)] * 4),
        *answered("base", "image", "avg@2", *[(1.0, 0.0)] * 4),
    ]
    row, _ = mean_results(exam_results(answers, graded))  # and the mean over exams
    assert (row.model, row.way, row.accuracy.mean) == ("base", "greedy", 0.25)


def test_the_papers_overall_is_told_beside_the_mean_of_capabilities() -> None:
    """The paper's own table: (7 x 56.97 + 5 x 58.76) / 12 = 57.72 over benchmarks, 57.87 over capabilities."""
    names = [("image", f"i{number}") for number in range(7)] + [("text", f"t{number}") for number in range(5)]
    benchmarks = [exam(name, capability, GREEDY) for capability, name in names]
    answers = [
        answer
        for capability, name in names
        for answer in answered("base", name, "greedy", *[(0.5697 if capability == "image" else 0.5876,)] * 4)
    ]
    capabilities, overall = mean_results(exam_results(answers, benchmarks))
    assert (capabilities.name, overall.name) == ("mean", "mean over exams")
    assert capabilities.accuracy.mean == pytest.approx(0.57865)
    assert overall.accuracy.mean == pytest.approx(0.577158, abs=1e-6)


def test_lines_for_programs_have_as_many_cells_as_heads() -> None:
    answers = answered("base", "text", "greedy", (1.0,), (None,), (1.0,), (0.0,))
    results = exam_results(answers, [exam("text", "text", GREEDY)])
    heads, *rows = lines(results, mean_results(results))
    assert [len(row) for row in rows] == [len(heads)] * 2
    assert rows[0][:4] == ("text", "greedy", "base", "0.6667")


def test_an_answers_file_has_the_keys_that_scripts_read() -> None:
    (answer,) = answered("base", "text", "greedy", (1.0,))
    assert list(answer.to_json()) == [
        "model", "exam", "way", "place", "question", "number", "text", "reward", "why", "tokens", "is_cut_off",
    ]  # fmt: skip

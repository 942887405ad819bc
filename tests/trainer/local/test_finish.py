"""What a finished run is merged from, and that nothing is made twice. The whole of it: tests/e2e/test_run.py."""

from pathlib import Path

import pytest

from adapters.base import locate
from adapters.merge import MergePlan, make_merge_plan
from adapters.merge_inputs import MergeBase, open_base, open_folder
from adapters.names import MERGED
from tests.adapters.files import write_adapter
from tests.faults.recipes import small
from trainer.evaluation.exams import ExamResult
from trainer.evaluation.intervals import Interval
from trainer.local.examiner import ADAPTER
from trainer.local.finish import card_scores, merge, plan_merge
from trainer.plan.make import make_plan


@pytest.fixture(scope="module")
def base() -> MergeBase:
    return open_base(locate("miniature"), "miniature")


@pytest.fixture
def merge_plan(base: MergeBase, tmp_path: Path) -> MergePlan:
    folders = {name: write_adapter(tmp_path / name, fill) for name, fill in {"text": 0.1, "image": 0.2}.items()}
    return make_merge_plan([open_folder(folder, base, name) for name, folder in folders.items()], {})


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_merge_that_is_there_is_not_made_again(base: MergeBase, merge_plan: MergePlan, tmp_path: Path) -> None:
    record = merge(base, merge_plan, tmp_path)
    assert [branch.source for branch in record.branches] == [branch.source for branch in merge_plan.branches]
    before = stamps(tmp_path / MERGED), stamps(tmp_path / ADAPTER)
    assert merge(base, merge_plan, tmp_path) == record
    assert (stamps(tmp_path / MERGED), stamps(tmp_path / ADAPTER)) == before


def test_a_merge_that_was_broken_off_is_completed(base: MergeBase, merge_plan: MergePlan, tmp_path: Path) -> None:
    record = merge(base, merge_plan, tmp_path)
    before = stamps(tmp_path / ADAPTER)
    (tmp_path / MERGED).rename(tmp_path / "before")
    assert merge(base, merge_plan, tmp_path).branches == record.branches
    assert (tmp_path / MERGED / "model.safetensors").read_bytes() == (
        tmp_path / "before" / "model.safetensors"
    ).read_bytes()
    assert stamps(tmp_path / ADAPTER) == before


def test_ties_has_no_adapter(base: MergeBase, merge_plan: MergePlan, tmp_path: Path) -> None:
    ties = make_merge_plan(merge_plan.branches, {}, method="ties", density=0.5)
    merge(base, ties, tmp_path)
    assert (tmp_path / MERGED).is_dir()
    assert not (tmp_path / ADAPTER).exists()


@pytest.mark.parametrize(
    "changes",
    [
        ['merge.method="none"'],
        [
            'method.kind="mopd"',
            'method.topology="pairwise"',
            "method.hub=null",
            'method.student="text"',
            "method.steps=3",
        ],
    ],
)
def test_where_nothing_is_to_be_merged_no_revision_is_opened(
    base: MergeBase, tmp_path: Path, changes: list[str]
) -> None:
    recipe = small(*changes)
    assert plan_merge(recipe, make_plan(recipe), tmp_path / "no-store", base) is None


def result(exam: str, way: str, accuracy: float) -> ExamResult:
    interval = Interval(accuracy, 0.01)
    return ExamResult("text@6", exam, exam, way, interval, interval, None, 10, 0.0, 0.0, 5.0)


def test_a_card_has_the_likeliest_answers_score_else_the_sampled_ones() -> None:
    results = [result("text", "avg@4", 0.2), result("text", "greedy", 0.4), result("text", "avg@8", 0.3)]
    assert card_scores([*results, result("image", "avg@4", 0.6)]) == {"text@6": {"text": 0.4, "image": 0.6}}

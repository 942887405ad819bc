"""What `coevo bench branches` makes of a run's events, and what it tells of several runs."""

import json
from pathlib import Path

import pytest

from bench import branches
from bench.branches import Figures, counts, figures_of
from trainer.recipe.file import load


def event(branch: str, step: int, at: float, publish: float = 0.2) -> dict[str, object]:
    seconds = {"gather": 1.0, "learn": 0.5, "publish": publish}
    return {"id": f"{int(at * 1000)}-0", "kind": "step", "branch": branch, "step": step, "seconds": seconds}


@pytest.fixture
def growth() -> dict[int, Figures]:
    exact = branches.adapter_bytes()
    return {count: Figures(2.0, 1.0, 0.5, 0.1, 10**9 + count * exact, 2 * 10**9) for count in (1, 2, 4)}


def test_branches_are_doubled_up_to_the_most() -> None:
    assert counts(16) == [1, 2, 4, 8, 16]
    assert counts(5) == [1, 2, 4]
    assert counts(1) == [1]


def test_seconds_are_those_after_every_branch_has_made_a_step() -> None:
    steps = [event("a", 1, 3), event("b", 1, 5, publish=9), event("a", 2, 4), event("b", 2, 7), event("a", 3, 11)]
    figures = figures_of(steps, 1, 2)
    assert figures.seconds == pytest.approx((11 - 5) / 2)  # a's second step came before b's first
    assert figures.publish == 0.2


def test_the_memory_of_one_more_branch_stands_beside_its_tensors(growth: dict[int, Figures]) -> None:
    *_, row = branches.json_rows(growth)
    assert row["unit"] == "MB"
    assert row["ours"] == pytest.approx(row["theirs"])
    assert branches.table(growth).splitlines()[2].startswith("| 1 | 2.00 | 1.00 | 1.00 | 0.50 | 0.10 | ")


def test_rows_in_a_file_are_read_back(growth: dict[int, Figures]) -> None:
    read = branches.from_rows(json.loads(json.dumps(branches.json_rows(growth))))
    assert read.keys() == growth.keys()
    assert all(read[count].seconds == growth[count].seconds for count in growth)
    assert read[4].worker == pytest.approx(growth[4].worker)


def test_the_branches_of_a_run_have_room_in_the_engine(tmp_path: Path) -> None:
    recipe = load(branches.recipe_of(16, 3, tmp_path))
    assert len(recipe.branches) == 16
    assert recipe.engine.max_loras == 2 * 16 + 2
    assert recipe.lora.rank == branches.RANK


def test_growth_of_branches_is_drawn(growth: dict[int, Figures], tmp_path: Path) -> None:
    branches.draw(growth, tmp_path / "docs/branches.png")
    assert (tmp_path / "docs/branches.png").read_bytes().startswith(b"\x89PNG")


def test_steps_are_those_of_a_file_that_says_its_run_is_finished(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    ends = [{"kind": "run", "state": state, "id": "0-0"} for state in ("running", "finished")]
    file.write_text("".join(json.dumps(line) + "\n" for line in (ends[0], event("a", 1, 3), ends[1])))
    assert branches.steps_of(file) == [event("a", 1, 3)]

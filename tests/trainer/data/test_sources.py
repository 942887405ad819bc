"""A recipe's data become prompts."""

import json
from pathlib import Path

import pytest

from adapters.errors import UserError
from service.media import Limits
from trainer.data.sources import open_prompts
from trainer.recipe import Columns, DatasetData, MiniatureData


def test_the_miniature_answers_to_its_name() -> None:
    data = MiniatureData(type="miniature", name="text", size=5, level=1)
    prompts = open_prompts("sums", data, seed=1, limits=Limits())
    assert len(prompts) == 5
    assert {prompts[index].capability for index in range(5)} == {"sums"}


def test_a_file_is_read_through_the_recipes_columns(tmp_path: Path) -> None:
    rows = [{"problem": f"{n} + {n}?", "solution": 2 * n} for n in range(4)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(prompt="problem", answer="solution")
    data = DatasetData(type="dataset", name=str(file), columns=columns, limit=3, suffix="In a box.")
    prompts = open_prompts("sums", data, seed=0, limits=Limits())
    assert [prompts[index].answer for index in range(3)] == ["0", "2", "4"]
    assert prompts[2].messages == ({"role": "user", "content": [{"type": "text", "text": "2 + 2?\nIn a box."}]},)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (MiniatureData(type="miniature", name="taste"), "no miniature capability 'taste'"),
        (DatasetData(type="dataset", name="/nowhere/rows.jsonl"), "/nowhere/rows.jsonl: no such file or folder"),
    ],
)
def test_data_that_are_not_there_are_told(data: MiniatureData | DatasetData, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_prompts("any", data, seed=0, limits=Limits())

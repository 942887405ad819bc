from pathlib import Path

import pytest

from trainer.local.train import run_processes
from trainer.queue.server import URL_VARIABLE, QueueError
from trainer.recipe.file import load

RECIPE = Path("recipes/miniature.toml")


def test_the_recipe_of_a_folder_where_somebody_works_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with run_processes(tmp_path, load(RECIPE)):
        before = (tmp_path / "recipe.json").read_text()
        changed = load(RECIPE, ["budget.prefetch=1"])
        with pytest.raises(QueueError, match="works in this folder"), run_processes(tmp_path, changed):
            pass
        assert (tmp_path / "recipe.json").read_text() == before

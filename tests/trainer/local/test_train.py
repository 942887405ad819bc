from pathlib import Path

import pytest

from adapters.errors import UserError
from trainer.local.train import run_processes
from trainer.queue.server import URL_VARIABLE, QueueError
from trainer.recipe.file import load, run_id

RECIPE = Path("recipes/miniature.toml")


def test_the_recipe_of_a_folder_where_somebody_works_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with run_processes(tmp_path, load(RECIPE)):
        before = (tmp_path / "recipe.json").read_text()
        changed = load(RECIPE, ["budget.prefetch=1"])
        with pytest.raises(QueueError, match="works in this folder"), run_processes(tmp_path, changed):
            pass
        assert (tmp_path / "recipe.json").read_text() == before


def test_a_base_in_parts_is_the_same_run_and_wants_torchrun(tmp_path):
    parts = load(RECIPE, ["worker.shard=true"])
    assert run_id(parts) == run_id(load(RECIPE))
    remedy = r"worker\.shard: .* by torchrun .* --set worker\.shard=false"
    with pytest.raises(UserError, match=remedy), run_processes(tmp_path / "out", parts):
        pass
    assert not (tmp_path / "out").exists()

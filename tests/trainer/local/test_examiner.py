"""What of an examination needs no engine. The rest: tests/engine/test_evaluate.py."""

import json
from pathlib import Path

import pytest

from adapters.manifest import CONFIG
from trainer.local.examiner import flags_of, stacked_rank


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (3, 8), (24, 32), (129, 256), (512, 512), (513, None)])
def test_an_adapter_is_served_at_the_next_rank_that_an_engine_takes(
    rank: int, served: int | None, tmp_path: Path
) -> None:
    (tmp_path / CONFIG).write_text(json.dumps({"r": rank}))
    assert stacked_rank(tmp_path) == served


def test_where_no_adapter_is_none_is_served(tmp_path: Path) -> None:
    assert stacked_rank(tmp_path / "merged-adapter") is None


def test_a_service_has_the_runs_store_and_the_adapters_beside_it() -> None:
    assert flags_of(Path("out")) == ["--store=out/store", "--runs=out/runs"]
    extra = {"merged-0": Path("a"), "merged-1": Path("b")}
    assert flags_of(Path("out"), 64, extra)[2:] == ["--max-lora-rank=64", "--extra=merged-0=a,merged-1=b"]

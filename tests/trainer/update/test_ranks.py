import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.manifest import ADAPTER_FILES, WEIGHTS
from tests.trainer.update.rank_update import (
    LOSSES,
    LR,
    RECOMPUTED,
    UPDATES,
    held_bytes,
    make_terms,
    num_packs,
    train,
)
from trainer.update.policy import Policy
from trainer.update.ranks import SINGLE_PROCESS, joined

pytestmark = pytest.mark.reference

ROOT = Path(__file__).parents[3]
PROCESSES = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left. Their sets are in another order than this one's."""
    return left_by_processes(tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left of which each has half of the layers."""
    return left_by_processes(tmp_path_factory.mktemp("sharded"), "shard")


def left_by_processes(folder: Path, *words: str) -> Path:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    subprocess.run(
        [*torchrun, "-m", "tests.trainer.update.rank_update", str(folder), *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": seed},
        check=True,
        timeout=240,
    )
    return folder


@pytest.fixture(scope="module")
def alone(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for case in LOSSES:
        train(policy, case, folder, SINGLE_PROCESS)
    return folder


def weights(folder: Path, case: str, updates: int, rank: int = 0) -> torch.Tensor:
    tensors = load_file(folder / f"{case}-{updates}-{rank}" / WEIGHTS)
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def test_the_cases_are_what_they_are_called() -> None:
    assert num_packs(make_terms("uneven", 0), PROCESSES) == [[3, 4], [1, 1]]
    assert num_packs(make_terms("one pack", 0), PROCESSES) == [[1, 0]]
    assert num_packs(make_terms("two updates a batch", 0), PROCESSES) == [[1, 1]]


@pytest.mark.parametrize("updates", [1, UPDATES])
@pytest.mark.parametrize("case", LOSSES)
def test_two_processes_make_the_update_of_one(together: Path, alone: Path, case: str, updates: int) -> None:
    start, updated, expected = weights(alone, case, 0), weights(together, case, updates), weights(alone, case, updates)
    torch.testing.assert_close(updated, expected, atol=1e-5, rtol=0)
    assert (expected - start).abs().max() > 0.9 * LR * updates
    assert (updated - expected).norm() < 1e-3 * (expected - start).norm()


@pytest.mark.parametrize("case", LOSSES)
def test_all_processes_hold_the_same_bits(together: Path, case: str) -> None:
    for updates in range(1, UPDATES + 1):
        assert torch.equal(weights(together, case, updates, 0), weights(together, case, updates, 1))


@pytest.mark.parametrize("case", LOSSES)
def test_all_processes_measure_the_whole_batch(together: Path, alone: Path, case: str) -> None:
    expected = json.loads((alone / f"{case}-0.json").read_text())
    for rank in range(PROCESSES):
        measured = json.loads((together / f"{case}-{rank}.json").read_text())
        assert len(measured) == UPDATES
        for metrics, wanted in zip(measured, expected, strict=True):
            assert metrics == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_equal_adapters_are_equal_bytes_in_every_process(together: Path, alone: Path) -> None:
    names = [folder / f"uneven-0-{rank}" for folder, rank in ((alone, 0), (together, 0), (together, 1))]
    for name in ADAPTER_FILES:
        assert len({(folder / name).read_bytes() for folder in names}) == 1


@pytest.mark.parametrize("updates", [1, UPDATES])
@pytest.mark.parametrize("case", LOSSES)
def test_processes_with_parts_of_the_layers_make_the_update_of_one(
    sharded: Path, together: Path, alone: Path, case: str, updates: int
) -> None:
    """In one case a process has no pack at all, in another fewer than the other process."""
    updated = weights(sharded, case, updates)
    torch.testing.assert_close(updated, weights(alone, case, updates), atol=1e-6, rtol=0)
    assert torch.equal(updated, weights(together, case, updates))
    assert torch.equal(updated, weights(sharded, case, updates, rank=1))
    assert torch.equal(updated, weights(sharded / RECOMPUTED, case, updates))


def test_each_process_holds_its_part_of_the_layers_alone(sharded: Path, policy: Policy) -> None:
    whole = held_bytes(policy)
    parts = [json.loads((sharded / f"held-{rank}.json").read_text()) for rank in range(PROCESSES)]
    assert [part["layers"] for part in parts] == [whole["layers"] / PROCESSES] * PROCESSES
    assert [part["rest"] for part in parts] == [whole["rest"]] * PROCESSES


def test_a_process_without_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks == SINGLE_PROCESS
        assert ranks.leads
        value, tensor = object(), torch.ones(2)
        assert ranks.from_first(value) is value
        ranks.sum({"tensor": tensor})
        assert tensor.tolist() == [1, 1]
        assert [ranks.any(is_full, torch.device("cpu")) for is_full in (True, False)] == [True, False]

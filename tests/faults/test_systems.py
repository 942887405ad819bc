"""Every system that can be compared makes its plan, through the real service: each shipped recipe of the miniature."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.recipes import MINIATURE, renamed
from trainer.coordinator import run_id
from trainer.recipe.file import load
from trainer.systems import plan

RECIPES = [MINIATURE, *sorted(MINIATURE.with_suffix("").glob("*.toml"))]
TINY = (
    "method.cycles=1",
    "method.rlvr_steps=1",
    "method.opd_steps=1",
    "rollout.prompts=2",
    "rollout.group_size=2",
    "rollout.max_completion_tokens=8",
    "evaluation.questions=2",
)
AT_ONCE = 4

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("systems"))
    yield cluster
    cluster.close()


@pytest.mark.parametrize("first", range(0, len(RECIPES), AT_ONCE))
def test_every_system_runs_to_its_end(cluster: Cluster, tmp_path: Path, first: int) -> None:
    """Some at a time, each with its own branches in one store."""
    started = []
    for number, path in enumerate(RECIPES[first : first + AT_ONCE], first):
        recipe = load(path, [*TINY, f"evaluation.overlap_prompts={2 if 'adaptive' in path.stem else 0}"])
        if recipe.method.kind == "pilot":
            recipe = load(path, [*TINY, "method.checkpoints=1", "evaluation.overlap_prompts=0"])
        own = renamed(tmp_path, recipe, f"s{number}")
        coordinator, run = cluster.coordinator(own), run_id(load(own))
        started.append((own, coordinator, cluster.worker("all", name=f"s{number}", words=("--run", run))))
    for own, coordinator, worker in started:
        assert (worker.wait(), coordinator.wait()) == (0, 0), worker.log[-2000:]
        made, heads = plan(load(own)), cluster.heads()
        assert {start.branch: heads[start.branch] for start in made.starts} == {
            start.branch: made.head(start.branch) for start in made.starts
        }

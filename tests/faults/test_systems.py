"""Every system that can be compared makes its plan through the real service, in a few small steps."""

from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.recipes import MINIATURE, renamed
from trainer.plan.make import make_plan
from trainer.recipe.file import load, run_id

SHIPPED = [path for path in sorted(MINIATURE.with_suffix("").glob("*.toml")) if load(path).base.name == "miniature"]
"""On the shipped base."""
KINDS = [MINIATURE.with_suffix("") / f"{name}.toml" for name in ("mixed", "mopd", "pilot", "ages", "static-vt")]
"""What no other test runs."""
TINY = (
    "method.cycles=1",
    "method.rlvr_steps=1",
    "method.opd_steps=1",
    "rollout.prompts=3",
    "rollout.group_size=2",
    "rollout.max_completion_tokens=8",
    "evaluation.questions=2",
)
AT_ONCE = 4

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def test_every_kind_of_system_runs_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    run(cluster, tmp_path, KINDS)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(0, len(SHIPPED), AT_ONCE))
def test_every_shipped_recipe_of_the_miniature_runs_to_its_end(cluster: Cluster, tmp_path: Path, first: int) -> None:
    run(cluster, tmp_path, SHIPPED[first : first + AT_ONCE])


def run(cluster: Cluster, tmp_path: Path, paths: list[Path]) -> None:
    """All at once, each with its own branches in one store."""
    started = []
    for path in paths:
        name = f"{path.stem}-{len(cluster.children)}"
        recipe = load(path, [*TINY, f"evaluation.overlap_prompts={2 if 'adaptive' in path.stem else 0}"])
        if recipe.method.kind in ("pilot", "ages"):
            fewer = ("method.checkpoints=1", "method.temperatures=[0.5, 1.5]")
            recipe = load(path, [*TINY, *fewer, "evaluation.overlap_prompts=0"])
        written = renamed(tmp_path, recipe, name)
        coordinator = cluster.coordinator(written)
        started.append((written, coordinator, cluster.worker("all", name=name, words=("--run", run_id(load(written))))))
    for written, coordinator, worker in started:
        assert (worker.wait(), coordinator.wait()) == (0, 0), worker.log[-2000:]
        plan, heads = make_plan(load(written)), cluster.heads()
        assert {start.branch: heads[start.branch] for start in plan.starts} == {
            start.branch: plan.head(start.branch) for start in plan.starts
        }

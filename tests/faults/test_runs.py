"""Whole runs: what is computed does not depend on who computes it, when, or how often it was interrupted."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.manifest import Manifest, read_manifest
from tests.faults.cluster import Child, Cluster
from tests.faults.nursery import Nursery
from tests.faults.recipes import CAPABILITIES, written
from trainer.plan.make import make_plan
from trainer.plan.rhythm import decided
from trainer.plan.steps import Plan
from trainer.recipe.file import load, run_id

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipe"), "whole")


@pytest.fixture(scope="module")
def at_once(cluster: Cluster, recipe: Path) -> Cluster:
    """Three branches, hub, two cycles, six steps a branch: one worker makes them all."""
    worker, coordinator = cluster.worker("all", name="one", words=of(recipe)), cluster.coordinator(recipe)
    assert worker.wait() == 0
    assert coordinator.wait() == 0
    return cluster


def test_one_process_makes_the_plan_and_nothing_else(at_once: Cluster, recipe: Path) -> None:
    at_once.check(recipe)
    assert taught(at_once.store, recipe) == planned(make_plan(load(recipe)))


def test_three_processes_that_start_one_after_the_other_make_theirs(cluster: Cluster, tmp_path: Path) -> None:
    """Each only when the one before has made a step, so that the first ones wait for the last one's revisions."""
    recipe = written(tmp_path, "three")
    coordinator, workers = cluster.coordinator(recipe), list[Child]()
    for capability in CAPABILITIES:
        workers.append(cluster.worker(f"three-{capability}", name=f"of-{capability}"))
        cluster.wait_for_head(f"three-{capability}", 1)
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert coordinator.wait() == 0
    cluster.check(recipe)
    assert taught(cluster.store, recipe) == planned(make_plan(load(recipe)))
    steps = [event for event in cluster.events(run_id(load(recipe))) if event["kind"] == "step"]
    assert {(event["branch"], event["worker"]) for event in steps} == {(f"three-{x}", f"of-{x}") for x in CAPABILITIES}


def test_an_adaptive_rhythm_is_decided_once_for_all_workers(cluster: Cluster, tmp_path: Path) -> None:
    """Branches are still alike after a short cycle, so the next has more RLVR steps; a new coordinator knows of it."""
    numbers = ("rlvr_steps=1", "opd_steps=2", "rhythm=adaptive", "cycles=3")
    path = written(tmp_path, "adaptive", *(f"method.{number}" for number in numbers), "evaluation.overlap_prompts=2")
    recipe, run = load(path), run_id(load(path))
    workers = [cluster.worker(f"adaptive-{capability}", name=f"adaptive-{capability}") for capability in CAPABILITIES]
    first = cluster.coordinator(path)
    cluster.wait_for_head("adaptive-text", 4)
    first.kill()
    second = cluster.coordinator(path)
    assert [child.wait() for child in (*workers, second)] == [0, 0, 0, 0]
    decisions = [event for event in cluster.events(run) if event["kind"] == "rhythm"]
    assert [(event["cycle"], event["rlvr_steps"]) for event in decisions] == [(1, 2), (2, 2)]
    rhythm = decided(cluster.queue.agreed(run), recipe.method.rlvr_steps)
    assert rhythm == (1, 2, 2)
    assert taught(cluster.store, path) == planned(make_plan(recipe, rhythm))
    overlaps = [event for event in cluster.events(run) if event["kind"] == "overlap"]
    assert {event["step"] for event in overlaps} == {1, 3, 5, 6, 8, 9}


def test_a_run_killed_in_the_middle_ends_in_the_same_bits(
    at_once: Cluster, recipe: Path, tmp_path: Path, nursery: Nursery
) -> None:
    """Fed the first run's rollouts: half of it without prefetch, then kill -9 of everything, then the rest with."""
    run = run_id(load(recipe))
    record = at_once.folder / "runs" / run
    without = tmp_path / recipe.name
    without.write_text(recipe.read_text().replace('"prefetch": 2', '"prefetch": 0'))
    assert run_id(load(without)) == run
    second = Cluster(tmp_path, nursery=nursery)
    try:
        replay = ("--replay", str(record))
        coordinator, worker = second.coordinator(without), second.worker("all", name="one", words=replay)
        for capability in CAPABILITIES:
            second.wait_for_head(f"whole-{capability}", 3)
        for child in (worker, coordinator):
            child.kill()
        for process in second.service.family:
            process.kill()
        second.service.wait_for_end()
        second.server.kill()
        before = digests(second.store, recipe)
        assert any(revision < 6 for _, revision in before)
        second.server.start()
        second.service.start()
        coordinator, worker = second.coordinator(recipe), second.worker("all", name="one", words=replay)
        assert worker.wait() == 0
        assert coordinator.wait() == 0
        second.check(recipe)
        after = digests(second.store, recipe)
        assert before.items() <= after.items()
        assert after == digests(at_once.store, recipe)
    finally:
        second.close()


def test_a_replay_of_other_prompts_is_refused(at_once: Cluster, recipe: Path, tmp_path: Path) -> None:
    different = written(tmp_path, "whole-again", capabilities=("text",))
    shutil.copytree(at_once.folder / "runs" / run_id(load(recipe)), tmp_path / "record")
    (tmp_path / "record/rollouts/whole-text").rename(tmp_path / "record/rollouts/whole-again-text")
    coordinator = at_once.coordinator(different)
    worker = at_once.worker("all", name="other", words=(*of(different), "--replay", str(tmp_path / "record")))
    at_once.wait_until(lambda: any(job.branch == "whole-again-text" for job in at_once.queue.dead()))
    (job,) = [job for job in at_once.queue.dead() if job.branch == "whole-again-text"]
    assert "other prompts" in job.error
    for child in (worker, coordinator):
        child.signal(signal.SIGTERM)
        assert child.wait() == 0
    at_once.queue.retry("whole-again-text")


def of(recipe: Path) -> tuple[str, str]:
    """For a worker: of all runs this one."""
    return "--run", run_id(load(recipe))


def manifests(store: Path, recipe: Path) -> Iterator[Manifest]:
    for step in make_plan(load(recipe)).steps:
        folder = store / step.branch / str(step.number)
        if folder.exists():
            yield read_manifest(folder)


def digests(store: Path, recipe: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """Digests of each revision's adapter and of its optimiser's moments."""
    return {
        (manifest.branch, manifest.revision): (manifest.digest, manifest.files["optimizer.safetensors"].sha256)
        for manifest in manifests(store, recipe)
    }


def taught(store: Path, recipe: Path) -> dict[str, list[str]]:
    return {str(manifest.ref): list(manifest.meta["teachers"]) for manifest in manifests(store, recipe)}  # type: ignore[arg-type]


def planned(plan: Plan) -> dict[str, list[str]]:
    return {str(step.makes): [str(teacher.ref) for teacher in step.teachers] for step in plan.steps}

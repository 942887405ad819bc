"""What happens to workers: killed, stopped, woken too late, started twice, told to end, given what cannot be done."""

import signal
import time
from collections.abc import Set
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.manifest import read_manifest
from tests.faults.cluster import Child, Cluster
from tests.faults.proxy import failing
from tests.faults.recipes import written
from trainer.queue.client import Queue, lease_key
from trainer.recipe.file import load, run_id

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

FIVE = ("method.rlvr_steps=4", "method.cycles=1")  # five steps of one branch


def solo(cluster: Cluster, folder: Path, name: str, *changes: str) -> tuple[Path, str, Child]:
    """A run of one branch: its recipe, the branch, its coordinator."""
    recipe = written(folder, name, *FIVE, *changes, capabilities=("text",))
    return recipe, f"{name}-text", cluster.coordinator(recipe)


def finish(
    cluster: Cluster, recipe: Path, coordinator: Child, *workers: Child, made_again: Set[tuple[str, int]] = frozenset()
) -> None:
    assert [worker.wait() for worker in workers] == [0] * len(workers)
    assert coordinator.wait() == 0
    cluster.check(recipe, made_again)


def events_of(cluster: Cluster, recipe: Path, kind: str) -> list[dict]:
    return [event for event in cluster.events(run_id(load(recipe))) if event["kind"] == kind]


def test_killed_at_any_point_it_goes_on_at_once_under_its_name(cluster: Cluster, tmp_path: Path) -> None:
    """Faults 1 to 3: nothing is lost but the step it was at, and what it had published counts."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "killed")
    for point, head in (("claimed", 0), ("gathered", 1), ("learnt", 2), ("published", 3)):
        at = f"{branch}@{head}" if point == "claimed" else f"{branch}@{max(head, 1)}"
        worker = cluster.worker(branch, name="phoenix", COEVO_FAULT=f"{point}:{at}")
        assert worker.wait() == -signal.SIGKILL
        assert cluster.heads()[branch] == (head if point == "published" else max(head - 1, 0))
        cluster.check_queue()
    finish(cluster, recipe, coordinator, cluster.worker(branch, name="phoenix"))
    claims = [event for event in events_of(cluster, recipe, "lease") if event["what"] == "claimed"]
    assert len(claims) <= 4, "a lease was waited for and not taken back"


def test_a_worker_that_dies_is_replaced_when_its_lease_is_out(cluster: Cluster, tmp_path: Path) -> None:
    recipe, branch, coordinator = solo(cluster, tmp_path, "replaced")
    first = cluster.worker(branch, name="first", COEVO_FAULT=f"stop:gathered:{branch}@2")
    cluster.wait_until(lambda: first.is_stopped())
    second = cluster.worker(branch, name="second")
    cluster.wait_until(lambda: "works for" in second.log)
    with cluster.server.client() as client:
        client.pexpire(lease_key(branch), int(cluster.lease_s * 1000))  # as if it had just been renewed
    first.kill()
    began = time.monotonic()
    cluster.wait_until(lambda: cluster.queue.waiting([branch])[branch].worker == "second")
    assert time.monotonic() - began < 1.2 * Queue(cluster.server.url).lease_s
    finish(cluster, recipe, coordinator, second)


def test_a_worker_that_slept_through_its_lease_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Fault 4: stopped with a finished update in hand, overtaken, woken: what it publishes is refused."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "zombie")
    zombie = cluster.worker(branch, name="zombie", COEVO_FAULT=f"stop:learnt:{branch}@2")
    cluster.wait_until(lambda: zombie.is_stopped())
    successor = cluster.worker(branch, name="successor")
    cluster.wait_for_head(branch, 3)
    zombie.wake()
    finish(cluster, recipe, coordinator, successor, zombie)
    assert "lease went to another worker" in zombie.log
    steps = events_of(cluster, recipe, "step")
    assert [(event["step"], event["worker"]) for event in steps if event["step"] in (1, 2)] == [
        (1, "zombie"),
        (2, "successor"),
    ]


def test_the_second_worker_waits_and_takes_over_when_the_first_ends(cluster: Cluster, tmp_path: Path) -> None:
    """Faults 5 and 8: the update under way is finished, published and handed over."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "handed")
    first = cluster.worker(branch, name="early", COEVO_FAULT=f"stop:learnt:{branch}@2")
    cluster.wait_until(lambda: first.is_stopped())
    second = cluster.worker(branch, name="late")
    cluster.wait_until(lambda: "works for" in second.log)
    assert cluster.queue.waiting([branch])[branch].worker in ("early", None, "late")
    first.signal(signal.SIGTERM)
    first.wake()
    assert first.wait() == 0
    assert "everything handed over" in first.log
    finish(cluster, recipe, coordinator, second)


def test_two_workers_of_one_name_on_two_machines_share_no_lease(cluster: Cluster, tmp_path: Path) -> None:
    """Each with a folder for locks of its own, as two machines have. One makes the steps, the other waits."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "twins", "rollout.prompts=24", "rollout.group_size=16")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    twins = [cluster.worker(branch, name="twin"), cluster.worker(branch, name="twin", TMPDIR=str(elsewhere))]
    finish(cluster, recipe, coordinator, *twins)
    assert [event for event in events_of(cluster, recipe, "lease") if event["what"] == "lost"] == []
    assert any("another twin has it" in twin.log for twin in twins)


def test_a_step_that_is_longer_than_the_lease_keeps_it(cluster: Cluster, tmp_path: Path) -> None:
    """Fault 6: renewals come from a thread of their own."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "long", "rollout.prompts=24", "rollout.group_size=16")
    workers = [cluster.worker(branch, name=name, words=("--lease=0.8",)) for name in ("rival-1", "rival-2")]
    finish(cluster, recipe, coordinator, *workers)
    assert all(sum(event["seconds"].values()) > 0.8 for event in events_of(cluster, recipe, "step"))
    assert len({event["worker"] for event in events_of(cluster, recipe, "step")}) == 1
    assert not [event for event in events_of(cluster, recipe, "lease") if event["what"] == "lost"]


HOLDER = """
import ctypes, os, threading, time
from pathlib import Path

def hold() -> None:
    marker = Path(os.environ["COEVO_TEST_MARKER"])
    while True:
        while not marker.exists():
            time.sleep(0.05)
        # A C function that is called through PyDLL keeps the interpreter's lock: no thread of this process runs.
        ctypes.PyDLL(None).sleep(int(marker.read_text()))
        marker.unlink()

threading.Thread(target=hold, daemon=True).start()
"""


def test_a_worker_whose_interpreter_is_held_loses_at_most_its_lease(cluster: Cluster, tmp_path: Path) -> None:
    """Fault 7: after two leases the branch is another's, and what was learnt is dropped."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "held")
    (tmp_path / "sitecustomize.py").write_text(HOLDER)
    marker = tmp_path / "marker"
    holder = cluster.worker(
        branch,
        name="holder",
        is_fork=False,  # the interpreter's start runs `sitecustomize`
        COEVO_FAULT=f"stop:gathered:{branch}@2",
        COEVO_TEST_MARKER=str(marker),
        PYTHONPATH=str(tmp_path),
    )
    cluster.wait_until(lambda: holder.is_stopped())
    rival = cluster.worker(branch, name="rival")
    cluster.wait_until(lambda: "works for" in rival.log)
    # Before it wakes: awake it may be through with all its steps in less time than a file takes to be seen.
    (tmp_path / "draft").write_text(f"{2 * cluster.lease_s:.0f}")
    (tmp_path / "draft").rename(marker)
    holder.wake()
    finish(cluster, recipe, coordinator, holder, rival)
    steps = {event["step"]: event["worker"] for event in events_of(cluster, recipe, "step")}
    assert (steps[1], steps[5]) == ("holder", "rival")


def test_the_second_order_to_end_ends_it_at_once(cluster: Cluster, tmp_path: Path) -> None:
    recipe, branch, coordinator = solo(cluster, tmp_path, "ended")
    worker = cluster.worker(branch, name="ended", COEVO_FAULT=f"stop:gathered:{branch}@2")
    cluster.wait_until(lambda: worker.is_stopped())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):  # two of one kind would wait as one
        worker.signal(number)
    assert worker.wait() in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert cluster.heads()[branch] == 1
    finish(cluster, recipe, coordinator, cluster.worker(branch, name="ended"))


def test_a_job_that_always_fails_dies_and_can_be_tried_again(cluster: Cluster, tmp_path: Path) -> None:
    """Fault 9: three attempts, then it stands in the list of the dead with its error, and its worker lives on."""
    recipe, branch, coordinator = solo(
        cluster, tmp_path, "poison", "capabilities.text.reward.kind=tests.faults.late_reward:judge"
    )
    marker = tmp_path / "mended"
    worker = cluster.worker(branch, name="stoic", COEVO_TEST_MARKER=str(marker))
    cluster.wait_until(lambda: any(job.branch == branch for job in cluster.queue.dead()))
    (job,) = [job for job in cluster.queue.dead() if job.branch == branch]
    assert job.job.endswith(f"{branch}:0")
    cluster.wait_until(lambda: len(events_of(cluster, recipe, "failed")) == 3)
    cluster.wait_until(lambda: "failed for good" in coordinator.log)
    assert worker.process.poll() is None
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    marker.touch()
    assert cluster.queue.retry(branch)
    finish(cluster, recipe, coordinator, cluster.worker(branch, name="stoic", COEVO_TEST_MARKER=str(marker)))


@pytest.mark.parametrize(("status", "attempts"), [(500, 1), (507, 0)])
def test_a_service_that_fails_once_costs_an_attempt(
    cluster: Cluster, tmp_path: Path, status: int, attempts: int
) -> None:
    """But for a full disk, which is waited for: somebody may free some."""
    recipe, branch, coordinator = solo(cluster, tmp_path, f"failing{status}")
    with failing(cluster.service.url, "PUT", f"/adapters/{branch}/2", status) as url:
        worker = cluster.worker(branch, name=f"failed{status}", COEVO_SERVICE_URL=url)
        finish(cluster, recipe, coordinator, worker)
    events = events_of(cluster, recipe, "failed")
    assert [(event["step"], event["dead"]) for event in events] == [(2, False)] * attempts


def test_a_step_that_hangs_is_given_up_though_its_lease_is_renewed(cluster: Cluster, tmp_path: Path) -> None:
    """The event loop itself stands still, as with a dead rank; the thread of the heartbeat goes on."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "hanging")
    fault = f"hang:gathered:{branch}@2"
    assert cluster.worker(branch, name="hung", words=("--hung=8",), COEVO_FAULT=fault).wait() == 70
    cluster.wait_until(lambda: events_of(cluster, recipe, "failed") != [])  # the coordinator brings it to the service
    (event,) = events_of(cluster, recipe, "failed")
    assert "its update made no progress for " in event["error"]
    waiting = cluster.queue.waiting([branch])[branch]
    assert (waiting.worker, waiting.attempts) == (None, 1)
    finish(cluster, recipe, coordinator, cluster.worker(branch, name="hung"))


def test_the_processes_of_a_torchrun_work_and_end_as_one(cluster: Cluster, tmp_path: Path) -> None:
    recipe, branch, coordinator = solo(cluster, tmp_path, "ranks")
    launch = ("torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "trainer.worker")
    service = {"COEVO_SERVICE_URL": cluster.service.url}
    words = (*launch, "--branch", branch, "--name", "ranks")
    first = Child(tmp_path / "first.log", *words, nursery=None, **(cluster.environ | service))
    cluster.children.append(first)
    cluster.wait_for_head(branch, 2)
    first.process.send_signal(signal.SIGTERM)
    first.wait()
    assert "everything handed over" in first.log
    second = Child(tmp_path / "second.log", *words, nursery=None, **(cluster.environ | service))
    cluster.children.append(second)
    finish(cluster, recipe, coordinator, second)


@pytest.mark.soak  # a hang is waited out: two minutes
def test_a_process_of_a_torchrun_that_hangs_costs_one_attempt(cluster: Cluster, tmp_path: Path) -> None:
    """Rank 0 waits for it in the sum of the gradients, and its heartbeat goes on."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "hung")
    launch = ("torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "trainer.worker")
    environ = cluster.environ | {"COEVO_SERVICE_URL": cluster.service.url}
    words = (*launch, "--branch", branch, "--name", "hung")
    first = Child(tmp_path / "first.log", *words, "--hung=20", nursery=None, **environ)
    cluster.children.append(first)
    cluster.wait_for_head(branch, 1)
    (second_rank,) = [
        process
        for process in psutil.Process(first.process.pid).children(recursive=True)
        if process.environ().get("RANK") == "1" and "trainer.worker" in process.cmdline()
    ]
    second_rank.suspend()
    assert first.wait() != 0
    assert not second_rank.is_running()
    (failed,) = events_of(cluster, recipe, "failed")
    assert "its update made no progress for" in failed["error"]
    assert not failed["dead"]
    second = Child(tmp_path / "second.log", *words, nursery=None, **environ)
    cluster.children.append(second)
    finish(cluster, recipe, coordinator, second)


def test_a_run_goes_on_whatever_happens_to_the_queue_server(cluster: Cluster, tmp_path: Path) -> None:
    """Faults 14 to 19. Meanwhile the service goes on answering."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "queue", "method.cycles=2")
    worker = cluster.worker(branch, name="patient")

    def restarted() -> None:
        cluster.server.stop()
        assert_scores(cluster)
        cluster.server.start()

    def killed() -> None:
        cluster.server.kill()
        assert_scores(cluster)
        cluster.server.start()

    def frozen() -> None:
        cluster.server.freeze()
        assert_scores(cluster)
        time.sleep(1.5 * cluster.lease_s)
        cluster.server.thaw()

    def full() -> None:
        cluster.server.limit_files(1)
        time.sleep(3)  # its file is written once a second
        cluster.server.limit_files(None)

    for head, fault in enumerate((restarted, killed, frozen, cluster.server.empty, full), 1):
        cluster.wait_for_head(branch, head)
        fault()
        cluster.wait_for_head(branch, head + 1)
    finish(cluster, recipe, coordinator, worker)


def assert_scores(cluster: Cluster) -> None:
    request = {"sequences": [{"prompt": [1, 2, 3], "completion": [4, 5]}]}
    assert httpx.post(f"{cluster.service.url}/logprobs?adapter=base", json=request, timeout=30).status_code == 200


def test_a_clock_that_is_an_hour_off_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """Fault 12, of a worker: all lease times are the server's. Whose clock jumps in `trainer/queue/test_tokens`."""
    recipe, branch, coordinator = solo(cluster, tmp_path, "clock")
    shift = tmp_path / "shift"
    shift.mkdir()
    (shift / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 3600\n")
    fault = f"stop:learnt:{branch}@2"
    ahead = cluster.worker(branch, name="ahead", is_fork=False, PYTHONPATH=str(shift), COEVO_FAULT=fault)
    cluster.wait_until(lambda: ahead.is_stopped())
    with cluster.server.client() as client:
        assert client.pttl(lease_key(branch)) <= cluster.lease_s * 1000
    ahead.wake()
    finish(cluster, recipe, coordinator, ahead)


def test_a_branch_starts_from_a_revision_of_another(cluster: Cluster, tmp_path: Path) -> None:
    recipe = written(tmp_path, "forked", "method.cycles=1", capabilities=("text",), init="replaced-text@4")
    coordinator, worker = cluster.coordinator(recipe), cluster.worker("forked-text", name="forked")
    finish(cluster, recipe, coordinator, worker)
    first, origin = (read_manifest(cluster.store / name) for name in ("forked-text/0", "replaced-text/4"))
    assert (first.origin, first.digest) == ("replaced-text@4", origin.digest)


def test_what_cannot_be_done_is_said_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    recipe, _, coordinator = solo(cluster, tmp_path, "usage")
    waiting = cluster.worker("nothing", name="usage")
    cluster.wait_until(lambda: "waits for a run" in waiting.log)
    wrong = [
        (
            cluster.worker("vidoe", name="wrong", words=("--run", run_id(load(recipe)))),
            "it has usage-text",
        ),
        (cluster.worker("all", name="usage"), "a worker of that name runs on this machine"),
    ]
    for worker, said in wrong:
        assert worker.wait() == 2
        assert said in worker.log
        assert "Traceback" not in worker.log
    for child in (waiting, coordinator):
        child.signal(signal.SIGTERM)
        assert child.wait() == 0

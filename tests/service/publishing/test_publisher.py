import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UserError
from adapters.manifest import (
    CONFIG,
    OPTIMISER,
    WEIGHTS,
    FileEntry,
    Manifest,
    adapter_digest,
    read_manifest,
    verify,
)
from adapters.names import Ref
from adapters.store import DiskFullError, Store, StoredBranch
from service.publishing.decisions import META_BYTES, Published, PublishRefusedError, Upload, decide, parse_meta
from service.publishing.publisher import LocalFence
from service.publishing.registry import UnavailableError
from tests import disks
from tests.adapters.files import BASE, write_adapter
from tests.service.publishing.publish_once import chunks, make_publisher, publish
from tests.service.recording import RecordingLoader
from trainer.queue.tokens import MAX_TOKEN

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[3]
POINTS = ("after-stage", "after-decide", "after-load", "after-commit", "after-advance")
FIRST = Upload(Ref("image", 1), 0)
SECOND = Upload(Ref("image", 2), 1)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", BASE) as store:
        yield store


@pytest.fixture
def loader():
    return RecordingLoader()


@pytest.fixture
def service(store, loader, tmp_path):
    return make_publisher(store, loader, tmp_path / "cache")


@pytest.fixture
def registry(service):
    return service[0]


@pytest.fixture
def publisher(service):
    return service[1]


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "adapter", 1)


@pytest.fixture
def second_adapter(tmp_path):
    return write_adapter(tmp_path / "second", 2)


async def refusal(publisher, folder, upload):
    with pytest.raises(PublishRefusedError) as error:
        await publish(publisher, folder, upload)
    assert "\n" not in str(error.value)
    return error.value


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def nothing_on_its_way(store):
    return not list((store.root / ".staging").iterdir())


async def head_of(registry, name="image"):
    async with registry.acquire(name) as served:
        return served.revision


async def test_an_upload_becomes_a_revision_that_is_served(publisher, registry, store, loader, adapter):
    (adapter / OPTIMISER).write_bytes((adapter / WEIGHTS).read_bytes())
    upload = Upload(Ref("image", 1), 0, token=3, job="image:1", base=BASE, meta={"seed": 7, "canary": [-1.05, -2.0]})
    published = await publish(publisher, adapter, upload)
    manifest = published.manifest
    assert published.is_new
    assert published.canary_difference == pytest.approx(0.025)
    assert (manifest.token, manifest.job, manifest.meta["seed"], manifest.parent) == (3, "image:1", 7, 0)
    for name in (CONFIG, WEIGHTS, OPTIMISER):
        assert (store.folder(manifest.ref) / name).read_bytes() == (adapter / name).read_bytes()
    async with registry.acquire("image") as served:
        assert (served.revision, served.digest, served.handle) == (1, manifest.digest, "image@1")
    assert loader.log == ["load image@1"]
    assert store.branch("image").live[0].digest == BASE
    assert nothing_on_its_way(store)


async def test_the_same_upload_again_is_answered_the_same(publisher, registry, loader, adapter, second_adapter):
    first = await publish(publisher, adapter, FIRST)
    again = await publish(publisher, adapter, FIRST)
    assert (again.manifest, again.is_new) == (first.manifest, False)
    await publish(publisher, second_adapter, SECOND)
    assert not (await publish(publisher, adapter, FIRST)).is_new
    assert await head_of(registry) == 2
    assert loader.log == ["load image@1", "load image@2"]


@pytest.mark.parametrize("damage", ["its folder", "its weights", "a byte", "the branch"])
async def test_the_same_upload_again_mends_what_is_gone_from_the_disk(publisher, store, adapter, damage):
    first = await publish(publisher, adapter, FIRST)
    folder = store.folder(first.manifest.ref)
    if damage in ("its folder", "the branch"):
        shutil.rmtree(folder if damage == "its folder" else folder.parent)
    elif damage == "its weights":
        (folder / WEIGHTS).unlink()
    else:
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1] + b"x")
    again = await publish(publisher, adapter, FIRST)
    assert (again.manifest, again.is_new) == (first.manifest, False)
    verify(folder, first.manifest.files)
    assert read_manifest(folder) == first.manifest
    assert nothing_on_its_way(store)


async def test_of_many_equal_uploads_at_once_one_is_new(publisher, registry, loader, adapter):
    results = await asyncio.gather(*(publish(publisher, adapter, FIRST) for _ in range(8)))
    assert Counter(result.is_new for result in results) == {True: 1, False: 7}
    assert loader.log == ["load image@1"]


async def test_of_many_different_uploads_at_once_one_wins(publisher, store, tmp_path):
    folders = [write_adapter(tmp_path / str(number), number) for number in range(5)]
    results = await asyncio.gather(*(publish(publisher, folder, FIRST) for folder in folders), return_exceptions=True)
    refused = [result for result in results if isinstance(result, PublishRefusedError)]
    (won,) = [result for result in results if isinstance(result, Published)]
    assert [result.kind for result in refused] == ["revision-exists"] * 4
    assert store.branch("image").live[1] == won.manifest
    assert nothing_on_its_way(store)


async def test_each_refusal_tells_the_head(publisher, store, adapter, second_adapter):
    await publish(publisher, adapter, replace(FIRST, token=5))
    table = [
        (second_adapter, FIRST, "revision-exists"),
        (second_adapter, Upload(Ref("image", 3), 2), "stale-parent"),
        (second_adapter, Upload(Ref("image", 2), 0), "stale-parent"),
        (second_adapter, Upload(Ref("image", 3), 1), "stale-parent"),
        (second_adapter, Upload(Ref("image", 3)), "stale-parent"),
        (second_adapter, replace(SECOND, token=4), "fenced"),
    ]
    for folder, upload, kind in table:
        error = await refusal(publisher, folder, upload)
        assert (error.kind, error.members) == (kind, {"head": 1})
    assert store.branch("image").head == 1
    assert nothing_on_its_way(store)


async def test_without_a_parent_the_head_is_continued(publisher, adapter, second_adapter):
    assert (await publish(publisher, adapter, Upload(Ref("image", 1)))).manifest.parent == 0
    assert (await publish(publisher, second_adapter, Upload(Ref("image", 2)))).manifest.parent == 1
    error = await refusal(publisher, adapter, Upload(Ref("image", 4)))
    assert str(error) == "revision 4 does not continue the head, which is 2; publish 3 on 2"


async def test_another_bases_adapter_and_every_other_fault_are_told_at_once(publisher, store, loader, adapter):
    (adapter / CONFIG).write_text("{}")
    upload = replace(FIRST, base="sha256:" + "1" * 64, meta={"canary": ["x"]})
    error = await refusal(publisher, adapter, upload)
    assert error.kind == "other-base"
    problems = error.members["problems"]
    assert isinstance(problems, list)
    assert len(problems) >= 4
    assert (await refusal(publisher, adapter, FIRST)).kind == "invalid"
    assert store.branches == {}
    assert loader.log == []


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "adapter_model.pt", "../adapter_model.safetensors", "manifest.json", "x" * 10_000, ""]
)
async def test_files_of_other_names_are_refused_before_they_are_written(publisher, store, adapter, name):
    async with publisher.stage() as stage:
        with pytest.raises(PublishRefusedError, match="is no file of an adapter; send adapter_config") as error:
            await stage.receive(name, chunks(adapter / WEIGHTS))
        assert len(str(error.value)) < 400
        assert list(stage.folder.iterdir()) == []
    assert nothing_on_its_way(store)


async def test_a_file_is_sent_once(publisher, adapter):
    async with publisher.stage() as stage:
        await stage.receive(CONFIG, chunks(adapter / CONFIG))
        with pytest.raises(PublishRefusedError, match="sent twice"):
            await stage.receive(CONFIG, chunks(adapter / CONFIG))


async def test_a_file_without_end_is_refused_at_its_limit(publisher, store):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 2**16
            yield bytes(2**16)

    async with publisher.stage() as stage:
        with pytest.raises(PublishRefusedError) as error:
            await stage.receive(CONFIG, endless())
        assert error.value.kind == "too-large"
    assert sent <= 2**20 + 2**16
    assert nothing_on_its_way(store)


async def test_an_upload_that_breaks_off_leaves_nothing(publisher, store, adapter):
    async def broken():
        yield b"{"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        async with publisher.stage() as stage:
            await stage.receive(CONFIG, broken())
    assert nothing_on_its_way(store)
    assert store.branches == {}


@pytest.mark.parametrize(
    ("dtype", "engine", "publishers", "says"),
    [
        ("float32", [-1.0, -2.0], [-1.0, -2.3], "differ from meta.canary by 0.15 on average, at most 0.1 "),
        ("bfloat16", [-1.0, -2.0], [-1.0, -2.6], "differ from meta.canary by 0.3 on average, at most 0.25 "),
        ("float32", [-1.0, -2.0], [-1.0], "has 1 numbers, the canary has 2 tokens"),
        ("float32", [-1.0, float("nan")], [-1.0, -2.0], "not finite"),
        ("bfloat16", [-1.0, float("-inf")], None, "not finite"),
    ],
)
async def test_an_adapter_whose_numbers_are_other_is_refused_and_not_kept(
    store, loader, adapter, second_adapter, tmp_path, dtype, engine, publishers, says
):
    answers = [engine, [-1.0, -2.0]]

    async def canary(handle):
        assert handle in loader.loaded
        return answers.pop(0)

    registry, publisher = make_publisher(store, loader, tmp_path / "cache", dtype=dtype, canary=canary)
    meta = {} if publishers is None else {"canary": publishers}
    error = await refusal(publisher, adapter, replace(FIRST, meta=meta))
    assert error.kind == "canary"
    assert says in str(error)
    assert loader.loaded == {}
    assert store.branches == {}
    assert registry.heads == {}
    assert list((tmp_path / "cache").iterdir()) == []
    assert nothing_on_its_way(store)
    await publish(publisher, second_adapter, FIRST)
    assert list(loader.loaded) == ["image@1~2"]


async def test_what_the_engine_does_not_take_is_refused(publisher, store, loader, adapter):
    loader.refuses.add("image@1")
    error = await refusal(publisher, adapter, FIRST)
    assert (error.kind, "the engine does not take it" in str(error)) == ("invalid", True)
    assert store.branches == {}


async def test_a_publisher_that_hangs_up_has_published(publisher, registry, store, loader, adapter):
    loader.gate.clear()
    caller = asyncio.create_task(publish(publisher, adapter, FIRST))
    await until(lambda: loader.log)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    loader.gate.set()
    await until(lambda: registry.heads.get("image") == 1)
    assert not (await publish(publisher, adapter, FIRST)).is_new
    assert nothing_on_its_way(store)


async def test_a_queue_that_fails_is_told_again_by_the_retry(store, loader, adapter, tmp_path):
    class Queue:
        def __init__(self):
            self.is_down = True
            self.told = []

        async def is_current(self, branch, token):
            return token == 7

        async def advance(self, manifest):
            if self.is_down:
                raise ConnectionError
            self.told.append(str(manifest.ref))

    queue = Queue()
    registry, publisher = make_publisher(store, loader, tmp_path / "cache", fence=queue)
    assert (await refusal(publisher, adapter, FIRST)).kind == "fenced"
    with pytest.raises(ConnectionError):
        await publish(publisher, adapter, replace(FIRST, token=7))
    assert store.branch("image").head == 1
    assert (queue.told, registry.heads) == ([], {"image": 1})
    queue.is_down = False
    assert not (await publish(publisher, adapter, replace(FIRST, token=7))).is_new
    assert (queue.told, registry.heads) == (["image@1"], {"image": 1})


async def test_tokens_that_are_older_than_one_on_the_disk_are_fenced(publisher, store, adapter):
    await publish(publisher, adapter, replace(FIRST, token=5))
    fence = LocalFence(store)
    assert [await fence.is_current("image", token) for token in (4, 5, 6, None)] == [False, True, True, True]
    assert await fence.is_current("text", 0)
    assert not await fence.is_current("text", MAX_TOKEN)  # no lease has it before the year 2255


async def test_a_stored_token_that_is_ahead_of_the_clock_fences_nobody(publisher, store, adapter):
    manifest = (await publish(publisher, adapter, replace(FIRST, token=5))).manifest
    fence = LocalFence(store)
    await fence.advance(manifest.model_copy(update={"token": MAX_TOKEN}))
    assert [await fence.is_current("image", token) for token in (4, 6, MAX_TOKEN)] == [False, True, False]


async def test_forks(publisher, registry, store, adapter, second_adapter):
    await publish(publisher, adapter, replace(FIRST, ref=Ref("expert", 1)))
    forked = await publisher.fork("image", "expert@1")
    assert (forked.is_new, forked.manifest.origin) == (True, "expert@1")
    assert (await publisher.fork("image", "expert@1")).is_new is False
    assert (await publisher.fork("text", "base")).manifest.digest == BASE
    assert await head_of(registry) == 0
    assert await head_of(registry, "text") == 0
    async with registry.acquire("image") as served:
        assert (served.digest, served.handle) == (store.branch("expert").live[1].digest, "image@0")
    assert (await publish(publisher, second_adapter, FIRST)).manifest.parent == 0
    with pytest.raises(PublishRefusedError, match="there already; its head is 1"):
        await publisher.fork("image", "base")
    for origin, kind in (("expert@9", "unknown-adapter"), ("nobody@1", "unknown-adapter")):
        with pytest.raises(UnavailableError) as error:
            await publisher.fork("video", origin)
        assert error.value.kind == kind
    for branch, origin in (("video", "expert"), ("base", "expert@1"), ("../x", "base"), ("video", "base@0")):
        with pytest.raises(UserError):
            await publisher.fork(branch, origin)
    assert set(store.branches) == {"expert", "image", "text"}
    assert nothing_on_its_way(store)


async def test_a_fork_with_moments_is_another_than_one_without(publisher, store, adapter):
    (adapter / OPTIMISER).write_bytes((adapter / WEIGHTS).read_bytes())
    await publish(publisher, adapter, replace(FIRST, ref=Ref("expert", 1)))
    forked = await publisher.fork("image", "expert@1", moments=True)
    assert (store.folder(Ref("image", 0)) / OPTIMISER).samefile(store.folder(Ref("expert", 1)) / OPTIMISER)
    assert (await publisher.fork("image", "expert@1", moments=True)).is_new is False
    assert (await publisher.fork("text", "expert@1")).manifest.digest == forked.manifest.digest
    with pytest.raises(PublishRefusedError, match="text is there already"):
        await publisher.fork("text", "expert@1", moments=True)


async def test_forks_of_each_other_do_not_wait_for_each_other(publisher, adapter):
    await publish(publisher, adapter, replace(FIRST, ref=Ref("a", 1)))
    await publish(publisher, adapter, replace(FIRST, ref=Ref("b", 1)))
    results = await asyncio.gather(publisher.fork("a", "b@1"), publisher.fork("b", "a@1"), return_exceptions=True)
    assert [isinstance(error, PublishRefusedError) and error.kind for error in results] == ["branch-exists"] * 2


async def test_a_head_goes_back_by_a_new_revision(publisher, store, registry, adapter, tmp_path):
    await publish(publisher, adapter, replace(FIRST, job="run-1:image-1", token=5))
    await publish(publisher, write_adapter(tmp_path / "mistake", 2), replace(SECOND, token=5))
    back = await publisher.go_back("image", 1, 2)
    first, manifest = store.branch("image").live[1], back.manifest
    assert (back.is_new, str(manifest.ref), manifest.parent, manifest.origin) == (True, "image@3", 2, "image@1")
    assert (manifest.digest, manifest.job) == (first.digest, "run-1:image-1")
    assert sorted(store.branch("image").live) == [0, 1, 2, 3]  # what was the head is still there
    assert registry.heads["image"] == 3
    for name in manifest.files:
        assert (store.folder(Ref("image", 3)) / name).read_bytes() == (adapter / name).read_bytes()
    again = await publisher.go_back("image", 1, 2)
    assert (again.is_new, again.manifest) == (False, manifest)
    # To the base too, and the branch goes on from there as from any head.
    await publisher.go_back("image", 0, 3)
    assert store.branch("image").live[4].files == {}
    await publish(publisher, adapter, Upload(Ref("image", 5), 4, token=5))
    store.close()
    with Store(store.root, BASE) as opened:
        assert (opened.branch("image").head, opened.rejected) == (5, [])


@pytest.mark.parametrize(
    ("to", "head", "kind"),
    [(1, 1, "stale-parent"), (2, 2, "invalid"), (1, 7, "stale-parent")],
)
async def test_a_return_that_is_none_is_refused(publisher, store, adapter, tmp_path, to, head, kind):
    await publish(publisher, adapter, FIRST)
    await publish(publisher, write_adapter(tmp_path / "second", 2), SECOND)
    with pytest.raises(PublishRefusedError) as refused:
        await publisher.go_back("image", to, head)
    assert (refused.value.kind, store.branch("image").head) == (kind, 2)
    with pytest.raises(UnavailableError, match="there is no such revision"):
        await publisher.go_back("image", 6, 2)


async def test_a_retired_revision_is_gone_and_its_number_stays_taken(
    publisher, registry, store, adapter, second_adapter
):
    await publish(publisher, adapter, FIRST)
    await publish(publisher, second_adapter, SECOND)
    with pytest.raises(PublishRefusedError, match="is the head"):
        await publisher.retire(Ref("image", 2))
    with pytest.raises(UnavailableError):
        await publisher.retire(Ref("image", 3))
    await publisher.retire(Ref("image", 1))
    await publisher.retire(Ref("image", 1))
    with pytest.raises(UnavailableError, match="was retired"):
        await head_of(registry, "image@1")
    assert (await refusal(publisher, second_adapter, FIRST)).kind == "revision-exists"
    assert not (await publish(publisher, adapter, FIRST)).is_new
    assert await head_of(registry) == 2


@pytest.mark.parametrize("branch", ["base", "merged"])
async def test_reserved_branches_are_not_published(publisher, store, adapter, branch):
    with pytest.raises(UserError, match="reserved"):
        await publish(publisher, adapter, replace(FIRST, ref=Ref(branch, 1)))
    assert nothing_on_its_way(store)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"a": NaN}', '{"a": [{"b": 1e999}]}', '{"a":' + "[" * 9000 + "]" * 9000 + "}", "{"]
)
async def test_meta_that_is_no_object_of_finite_numbers_is_refused(text):
    with pytest.raises(PublishRefusedError, match="meta: "):
        parse_meta(text)


async def test_meta_is_read_up_to_its_limit():
    assert parse_meta('{"seed": 7, "metrics": {"loss": null}}') == {"seed": 7, "metrics": {"loss": None}}
    with pytest.raises(PublishRefusedError) as error:
        parse_meta('{"a": "' + "x" * META_BYTES + '"}')
    assert error.value.kind == "too-large"


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_leaves_all_or_nothing_and_the_retry_agrees(point, tmp_path, loader, adapter, second_adapter):
    root = tmp_path / "store"
    with Store(root, BASE) as store:
        _, publisher = make_publisher(store, loader, tmp_path / "cache")
        await publish(publisher, second_adapter, replace(FIRST, token=1))
    command = [sys.executable, "-m", "tests.service.publishing.publish_once", str(root), str(adapter), "2", "2"]
    killed = subprocess.run(
        command, env=os.environ | {"COEVO_FAULT": point}, cwd=ROOT, capture_output=True, check=False
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, b"")
    is_committed = point in ("after-commit", "after-advance")
    loader = RecordingLoader()
    with Store(root, BASE) as store:
        assert store.rejected == []
        assert nothing_on_its_way(store)
        assert store.branch("image").head == (2 if is_committed else 1)
        registry, publisher = make_publisher(store, loader, tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []
        assert await head_of(registry) == store.branch("image").head
        retried = await publish(publisher, adapter, replace(SECOND, token=2))
        assert retried.is_new is not is_committed
        assert await head_of(registry) == store.branch("image").head == 2
        assert (await refusal(publisher, second_adapter, replace(SECOND, token=1))).kind == "revision-exists"
        manifests = dict(store.branch("image").live)
    with Store(root, BASE) as store:
        assert store.branch("image").live == manifests
        assert store.rejected == []


@pytest.fixture
def small_disk(tmp_path):
    """1 MB, of which a publish needs more than is left."""
    with disks.small_disk(tmp_path / "small", "1m") as folder:
        yield folder


@pytest.mark.parametrize("full", ["store", "cache"])
async def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    small_disk, tmp_path, loader, adapter, second_adapter, full
):
    """With a page more room each time, so that every write of a publish is the one that fails."""
    folders = {"store": tmp_path / "store", "cache": tmp_path / "cache"} | {full: small_disk / full}
    num_failures = 0
    with Store(folders["store"], BASE) as store:
        registry, publisher = make_publisher(store, loader, folders["cache"])
        await publish(publisher, adapter, FIRST)
        while store.branch("image").head == 1:
            disks.fill(small_disk, leave=num_failures * 4096)
            try:
                await publish(publisher, second_adapter, SECOND)
            except DiskFullError:
                num_failures += 1
                assert [path.name for path in folders["cache"].iterdir()] == ["image@1"]
            (small_disk / ".ballast").unlink()
            assert nothing_on_its_way(store)
            assert await head_of(registry) == store.branch("image").head
    assert num_failures > (adapter / WEIGHTS).stat().st_size // 4096
    with Store(folders["store"], BASE) as store:
        assert store.branch("image").head == 2
        assert store.rejected == []


def manifest_of(revision, digit):
    files = {name: FileEntry(sha256=digit * 64, bytes=1) for name in (CONFIG, WEIGHTS)}
    return Manifest(
        branch="image",
        revision=revision,
        parent=revision - 1 if revision else None,
        base=BASE,
        digest=adapter_digest(files),
        files=files,
        created=datetime.now(UTC),
    )


@st.composite
def branches(draw):
    """Every revision from 0 on is kept or retired, the head is kept; or nothing is there."""
    head = draw(st.integers(-1, 5))
    retired = draw(st.sets(st.integers(0, max(head - 1, 0)))) if head > 0 else set()
    manifests = {revision: manifest_of(revision, draw(st.sampled_from("ab"))) for revision in range(head + 1)}
    return StoredBranch(
        {revision: manifest for revision, manifest in manifests.items() if revision not in retired},
        {revision: manifest for revision, manifest in manifests.items() if revision in retired},
    )


@given(branches(), st.integers(0, 7), st.sampled_from("ab"), st.none() | st.integers(0, 7), st.booleans())
def test_the_decision_is_the_table(branch, revision, digit, parent, is_current):
    digest = manifest_of(revision, digit).digest
    decision = decide(branch, revision, digest, parent, is_current=is_current)
    head = max([0, *branch.live])
    there = {**branch.live, **branch.retired}.get(revision)
    if there is not None:
        expected = there if there.digest == digest else "revision-exists"
    elif (head if parent is None else parent, revision) != (head, head + 1):
        expected = "stale-parent"
    else:
        expected = None if is_current else "fenced"
    assert (decision.kind if isinstance(decision, PublishRefusedError) else decision) == expected
    if isinstance(decision, PublishRefusedError):
        assert decision.members == {"head": head}


def test_publishing_loads_neither_torch_nor_the_engine():
    heavy = (
        "import sys, service.publishing.publisher; sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, check=False).returncode == 0

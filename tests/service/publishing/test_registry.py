import asyncio
import hashlib
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest

from adapters.errors import UserError
from adapters.manifest import CONFIG, WEIGHTS, DamagedError, FileEntry, Manifest, adapter_digest, folder_digest
from adapters.names import Ref
from adapters.store import Store
from service.app import extras_of
from service.publishing.registry import AdapterLoadError, Extra, Registry, Served, UnavailableError
from tests.adapters.files import BASE, SHAPE, write_adapter
from tests.service.recording import RecordingLoader

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path):
    """`image` at 3 and `text` at 0, the base."""
    with Store(tmp_path / "store", BASE) as store:
        store.start("text")
        store.start("image")
        for revision in (1, 2, 3):
            add(store, "image", revision)
        yield store


@pytest.fixture
def loader():
    return RecordingLoader()


@pytest.fixture
def registry(store, loader, tmp_path):
    return Registry(store, loader, tmp_path / "cache", dtype="float32", capacity=2)


def entries(folder):
    contents = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    return {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in contents.items()
    }


def add(store, branch, revision, folder=None, fill=None):
    folder = folder or write_adapter(store.stage(), revision if fill is None else fill)
    files = entries(folder)
    manifest = Manifest(
        branch=branch,
        revision=revision,
        parent=revision - 1,
        base=BASE,
        digest=adapter_digest(files),
        files=files,
        created=datetime.now(UTC),
    )
    store.commit(folder, manifest)
    return manifest


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def use(registry, name):
    async with registry.acquire(name) as served:
        return served


async def test_a_branch_is_its_head_and_a_revision_is_itself(registry, store, loader):
    digest = store.branch("image").live[3].digest
    assert await use(registry, "image") == Served("image", 3, digest, "image@3")
    assert await use(registry, "image@3") == Served("image", 3, digest, "image@3")
    assert (await use(registry, "image@1")).handle == "image@1"
    assert loader.log == ["load image@3", "load image@1"]


async def test_the_base_and_a_branchs_start_need_no_adapter(registry, loader):
    assert await use(registry, "base") == Served("base", 0, BASE, None)
    assert await use(registry, "text") == Served("text", 0, BASE, None)
    assert await use(registry, "image@0") == Served("image", 0, BASE, None)
    assert loader.log == []


@pytest.mark.parametrize("name", ["video", "image@4", "text@1", "merged"])
async def test_what_is_not_there_is_unknown(registry, loader, name):
    with pytest.raises(UnavailableError) as error:
        await use(registry, name)
    assert error.value.kind == "unknown-adapter"
    assert loader.log == []


@pytest.mark.parametrize("name", ["../x", "image@03", "base@0", ""])
async def test_what_is_no_name_is_an_error_of_the_user(registry, name):
    with pytest.raises(UserError, match=r"names no adapter|no revisions"):
        await use(registry, name)


async def test_many_users_cost_one_load(registry, loader):
    loader.gate.clear()
    users = [asyncio.create_task(use(registry, "image")) for _ in range(20)]
    await until(lambda: loader.log)
    users[0].cancel()
    loader.gate.set()
    results = await asyncio.gather(*users, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {isinstance(served, Served) and served.handle for served in results[1:]} == {"image@3"}
    assert loader.log == ["load image@3"]
    assert registry.users == {Ref("image", 3): 0}


async def test_the_adapter_asked_for_longest_ago_leaves(registry, loader):
    for name in ("image@1", "image@2", "image@1", "image@3"):
        await use(registry, name)
    await until(lambda: "image@2" not in loader.loaded)
    assert set(loader.loaded) == {"image@1", "image@3"}


async def test_what_is_in_use_never_leaves_even_above_the_capacity(registry, loader):
    async with AsyncExitStack() as stack:
        for name in ("image@1", "image@2", "image@3"):
            await stack.enter_async_context(registry.acquire(name))
        assert set(loader.loaded) == {"image@1", "image@2", "image@3"}
        assert set(registry.users.values()) == {1}
    await until(lambda: len(loader.loaded) == 2)  # the first one to be free went
    assert set(loader.loaded) == {"image@1", "image@2"}


async def test_what_has_left_comes_back_after_it_is_gone(registry, loader):
    """The same name is unloaded and loaded again in this order, never at once (the loader checks)."""
    for _ in range(3):
        for name in ("image@1", "image@2", "image@3"):
            assert (await use(registry, name)).handle == name
    assert loader.log.count("load image@1") == 3


async def test_a_request_ends_on_the_revision_it_began_on(registry, store, loader):
    async with registry.acquire("image") as before:
        add(store, "image", 4)
        assert (await use(registry, "image")).revision == 3  # committed is not announced
        registry.flip(Ref("image", 4))
        assert (await use(registry, "image")).revision == 4
        await use(registry, "image@2")
        assert before.revision == 3
        assert before.handle in loader.loaded


async def test_a_head_never_goes_back(registry):
    registry.flip(Ref("image", 2))
    assert registry.heads == {"image": 3, "text": 0}


async def test_a_retired_revision_is_refused_and_leaves_with_its_last_user(registry, store, loader):
    async with registry.acquire("image@2"):
        await registry.retire(Ref("image", 2))
        store.retire(Ref("image", 2))
        with pytest.raises(UnavailableError, match="the head is image@3") as error:
            await use(registry, "image@2")
        assert error.value.kind == "retired-adapter"
        assert set(loader.loaded) == {"image@2"}
    await until(lambda: not loader.loaded)
    assert registry.users == {}


async def test_retiring_waits_for_a_load_that_reads_the_store(registry, loader):
    loader.gate.clear()
    user = asyncio.create_task(use(registry, "image@1"))
    await until(lambda: loader.log)
    retiring = asyncio.create_task(registry.retire(Ref("image", 1)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not retiring.done()
    loader.gate.set()
    await retiring
    assert (await user).handle == "image@1"


async def test_a_load_that_fails_is_tried_again_by_the_next_user(registry, loader, tmp_path):
    loader.refuses.add("image@3")
    for result in await asyncio.gather(use(registry, "image"), use(registry, "image"), return_exceptions=True):
        assert isinstance(result, AdapterLoadError)
    assert registry.users == {}
    assert list((tmp_path / "cache").iterdir()) == []
    loader.refuses.clear()
    assert (await use(registry, "image")).handle == "image@3"


async def test_a_revision_that_has_rotted_is_not_served(registry, store, loader):
    weights = store.folder(Ref("image", 2)) / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DamagedError):
        await use(registry, "image@2")
    assert loader.log == []
    assert (await use(registry, "image")).revision == 3


async def test_a_trial_is_nobodys_until_it_is_a_revision(registry, store, loader, tmp_path):
    staged = write_adapter(store.stage(), 4)
    digest = adapter_digest(entries(staged))
    async with registry.trial(Ref("image", 4), digest, staged) as served:
        assert served == Served("image", 4, digest, "image@4")
        with pytest.raises(UnavailableError):
            await use(registry, "image@4")
        add(store, "image", 4, staged)
        registry.flip(Ref("image", 4))
    assert (await use(registry, "image")).handle == "image@4"
    assert loader.log == ["load image@4"]


async def test_a_trial_that_becomes_no_revision_leaves_nothing_and_no_name(registry, store, loader, tmp_path):
    async with registry.trial(Ref("image", 4), "sha256:one", write_adapter(store.stage(), 4)):
        assert set(loader.loaded) == {"image@4"}
    assert loader.loaded == {}
    assert list((tmp_path / "cache").iterdir()) == []
    async with registry.trial(Ref("image", 4), "sha256:two", write_adapter(store.stage(), 5)) as served:
        assert served.handle == "image@4~2"
    async with registry.trial(Ref("image", 4), "sha256:one", write_adapter(store.stage(), 4)) as served:
        assert served.handle == "image@4"
    assert registry.users == {}


async def test_a_trial_that_is_given_up_while_it_loads_leaves_nothing(registry, store, loader, tmp_path):
    loader.gate.clear()

    async def try_it():
        async with registry.trial(Ref("image", 4), "sha256:one", write_adapter(store.stage(), 4)):
            pytest.fail("never loaded")

    trial = asyncio.create_task(try_it())
    await until(lambda: loader.log)
    trial.cancel()
    await asyncio.sleep(0)
    loader.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await trial
    await until(lambda: not loader.loaded)
    await until(lambda: not list((tmp_path / "cache").iterdir()))
    assert registry.users == {}


async def test_closing_unloads_everything(registry, loader, tmp_path):
    await use(registry, "image@1")
    await use(registry, "image@2")
    await registry.close()
    assert loader.loaded == {}
    assert list((tmp_path / "cache").iterdir()) == []


async def test_only_what_a_killed_service_left_in_the_cache_is_removed(store, loader, tmp_path):
    cache = tmp_path / "cache"
    for name in ("image@1", "image@1~2", "image@2.tmp", "mine"):
        (cache / name).mkdir(parents=True)
    Registry(store, loader, cache, dtype="float32", capacity=2)
    assert [path.name for path in cache.iterdir()] == ["mine"]


async def test_an_extra_adapter_is_loaded_on_demand_and_has_a_single_revision(store, loader, tmp_path):
    folder = write_adapter(tmp_path / "merge", 9)
    extras = {"merged": Extra(folder, folder_digest(folder))}
    registry = Registry(store, loader, tmp_path / "cache", dtype="float32", capacity=2, extras=extras)
    async with registry.acquire("merged") as served, registry.acquire("merged@0") as again:
        assert served == again
        assert (served.branch, served.revision, served.digest) == ("merged", 0, folder_digest(folder))
    with pytest.raises(UnavailableError, match="there is no branch merged"):
        async with registry.acquire("merged@1"):
            pass
    await registry.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Merged=x", "'Merged' is no name for it"),
        ("base=x", "'base' is no name for it"),
        ("merged=/no/such", "adapter_config.json: missing"),
    ],
)
def test_an_extra_adapter_that_cannot_be_served_is_told_at_the_start(text, said):
    with pytest.raises(UserError, match=said):
        extras_of(text, SHAPE, 16)

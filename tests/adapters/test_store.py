"""The store on disk: what reopening finds, after every damage and every interruption."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.errors import UserError
from adapters.manifest import CONFIG, MANIFEST, OPTIMISER, WEIGHTS, FileEntry, Manifest, adapter_digest
from adapters.names import Ref
from adapters.store import Store

BASE = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


def publish(store, branch, revision, *, content=None, meta=None):
    """A revision with files that nothing here looks into."""
    staged = store.stage()
    contents = {CONFIG: b"{}", WEIGHTS: content or f"{branch} {revision}".encode(), OPTIMISER: b"moments"}
    for name, data in contents.items():
        (staged / name).write_bytes(data)
    files = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in contents.items()
    }
    manifest = Manifest(
        branch=branch,
        revision=revision,
        parent=revision - 1,
        base=BASE,
        digest=adapter_digest(files),
        files=files,
        meta=meta or {},
        created=datetime.now(UTC),
    )
    store.commit(staged, manifest)
    return manifest


def state(store):
    return {name: (branch.head, sorted(branch.live), sorted(branch.retired)) for name, branch in store.branches.items()}


def message(root, base=BASE):
    """Why the store cannot be opened, which must be one line."""
    with pytest.raises(UserError) as error:
        Store(root, base)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_reopened_store_knows_what_was_published(root):
    with Store(root, BASE) as store:
        store.start("image")
        for revision in (1, 2, 3):
            publish(store, "image", revision)
        publish(store, "text", 1)
        before = dict(store.branches)
    with Store(root, BASE) as store:
        assert dict(store.branches) == before
        assert state(store) == {"image": (3, [0, 1, 2, 3], []), "text": (1, [1], [])}
        assert store.rejected == []


def test_numbers_are_ordered_as_numbers(root):
    with Store(root, BASE) as store:
        for revision in range(8, 12):
            publish(store, "image", revision)
    with Store(root, BASE) as store:
        assert store.branch("image").head == 11


def test_moments_stay_for_the_two_newest_and_for_phase_ends(root):
    with Store(root, BASE) as store:
        for revision in range(1, 6):
            publish(store, "image", revision, meta={"phase_end": revision == 2})
        revisions = [path.parent.name for path in sorted(root.glob(f"image/*/{OPTIMISER}"))]
        assert revisions == ["2", "4", "5"]
    with Store(root, BASE) as store:
        assert state(store)["image"] == (5, [1, 2, 3, 4, 5], [])


def test_staging_is_emptied_when_the_store_is_opened(root):
    with Store(root, BASE) as store:
        (store.stage() / WEIGHTS).write_bytes(b"half")
        assert list((root / ".staging").iterdir()) != []
    with Store(root, BASE) as store:
        assert list((root / ".staging").iterdir()) == []
        assert state(store) == {}


def test_a_second_process_is_refused_and_the_lock_dies_with_its_holder(root):
    hold = f"from adapters.store import Store; import pathlib; s = Store(pathlib.Path({str(root)!r}), {BASE!r}); "
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "print('open', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert f"another service (process {holder.pid}) writes it" in message(root)
        holder.kill()
    Store(root, BASE).close()


def test_the_same_process_is_refused_too(root):
    with Store(root, BASE):
        assert f"process {os.getpid()}" in message(root)
    Store(root, BASE).close()


def test_a_forked_child_does_not_hold_the_lock(root):
    """An engine's child that outlives a killed service must not keep the next service out."""
    store = Store(root, BASE)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        store.close()
        deadline = time.monotonic() + 30  # the child lets go as it starts
        while True:
            try:
                Store(root, BASE).close()
                break
            except UserError:
                assert time.monotonic() < deadline
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    finally:
        os.close(write)
        os.close(read)
        os.waitpid(child, 0)


def test_a_store_belongs_to_one_base(root):
    Store(root, BASE).close()
    assert f"belongs to the base {BASE}, not to {OTHER}" in message(root, OTHER)
    Store(root, BASE).close()


def test_a_folder_with_other_things_in_it_is_not_touched(tmp_path):
    (tmp_path / "projects" / "2024").mkdir(parents=True)
    assert "is no store" in message(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["projects"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    assert "is no folder" in message(tmp_path / "file")
    assert "name a folder that can be written" in message(tmp_path / "file" / "store")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 1}'])
def test_a_damaged_store_file_is_told(root, text):
    Store(root, BASE).close()
    (root / "store.json").write_text(text)
    assert "store.json: damaged" in message(root)


def test_a_store_of_another_format_is_not_opened(root):
    Store(root, BASE).close()
    (root / "store.json").write_text(json.dumps({"format": 2, "base": BASE}))
    assert "format 2" in message(root)


def flip_a_bit(folder: Path):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[0] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def move_elsewhere(folder: Path):
    outside = folder.parents[2] / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)


def link_the_weights(folder: Path):
    outside = folder.parents[2] / "outside"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def take_anothers_manifest(folder: Path):
    shutil.copy(folder.parent / "1" / MANIFEST, folder / MANIFEST)


def name_another_base(folder: Path):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace(BASE, OTHER))


def become_a_file(folder: Path):
    shutil.rmtree(folder)
    folder.write_text("a file")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        move_elsewhere,
        link_the_weights,
        take_anothers_manifest,
        name_another_base,
        become_a_file,
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / CONFIG).unlink(),
    ],
)
def test_what_is_no_whole_revision_is_moved_away_and_told(root, damage):
    with Store(root, BASE) as store:
        publish(store, "image", 1)
        publish(store, "image", 2)
        publish(store, "text", 1)
    damage(root / "image" / "2")
    with Store(root, BASE) as store:
        assert state(store) == {"image": (1, [1], []), "text": (1, [1], [])}
        assert len(store.rejected) == 1
        assert "image" in store.rejected[0]
        assert [path.name.split(".")[0] for path in (root / ".rejected").iterdir()] == ["image@2"]
        publish(store, "image", 2)
    with Store(root, BASE) as store:
        assert state(store)["image"] == (2, [1, 2], [])


def test_a_fork_shares_its_origins_bytes_and_outlives_it(root):
    with Store(root, BASE) as store:
        origin = publish(store, "expert", 1)
        publish(store, "expert", 2)
        fork = store.fork("image", Ref("expert", 1))
        assert (fork.origin, fork.digest, fork.parent, fork.revision) == ("expert@1", origin.digest, None, 0)
        assert (root / "image/0" / WEIGHTS).samefile(root / "expert/1" / WEIGHTS)
        assert not (root / "image/0" / OPTIMISER).exists()
        store.retire(Ref("expert", 1))
    with Store(root, BASE) as store:
        assert (root / "image/0" / WEIGHTS).read_bytes() == b"expert 1"
        assert store.branch("image").live[0] == fork
        assert store.rejected == []


def test_a_fork_takes_its_origins_moments_along_or_is_refused(root):
    with Store(root, BASE) as store:
        for revision in (1, 2, 3):
            publish(store, "expert", revision)
        fork = store.fork("image", Ref("expert", 3), moments=True)
        assert (root / "image/0" / OPTIMISER).samefile(root / "expert/3" / OPTIMISER)
        assert fork.digest == store.fork("video", Ref("expert", 3)).digest
        # Only the newest two keep theirs.
        with pytest.raises(UserError, match="expert@1 has no moments of an optimiser any more; fork a phase end"):
            store.fork("text", Ref("expert", 1), moments=True)
        assert store.branch("text").live == {}


def test_a_fork_of_a_start_is_a_start(root):
    with Store(root, BASE) as store:
        store.start("text")
        fork = store.fork("image", Ref("text", 0))
        assert (fork.files, fork.digest) == ({}, BASE)


def test_a_retired_revision_leaves_its_manifest(root):
    with Store(root, BASE) as store:
        first = publish(store, "image", 1)
        publish(store, "image", 2)
        store.retire(Ref("image", 1))
        with pytest.raises(UserError, match="is the head"):
            store.retire(Ref("image", 2))
    with Store(root, BASE) as store:
        assert state(store)["image"] == (2, [2], [1])
        assert store.branch("image").manifest(1) == first
        assert {path.name for path in (root / "image/1").iterdir()} == {MANIFEST, "retired"}


def test_a_stores_id_is_its_own_for_ever(root, tmp_path):
    with Store(root, BASE) as store, Store(tmp_path / "second", BASE) as second:
        id = store.id
        assert id != second.id
    with Store(root, BASE) as store:
        assert store.id == id
    (root / ".id").write_text("")
    assert "damaged" in message(root)


def test_a_retirement_that_was_cut_off_is_ended_at_the_next_start(root):
    with Store(root, BASE) as store:
        publish(store, "image", 1)
        publish(store, "image", 2)
    (root / "image/1/retired").touch()
    (root / "image/1" / CONFIG).unlink()
    with Store(root, BASE) as store:
        assert state(store)["image"] == (2, [2], [1])
        assert not (root / "image/1" / WEIGHTS).exists()
        assert store.rejected == []


def test_a_number_on_the_disk_is_never_written_over(root):
    with Store(root, BASE) as store:
        publish(store, "image", 1, content=b"first")
        with pytest.raises(OSError, match="not empty"):
            publish(store, "image", 1, content=b"second")
        assert (root / "image/1" / WEIGHTS).read_bytes() == b"first"


@pytest.mark.parametrize("branch", ["base", "merged", "../outside", ".staging"])
def test_reserved_and_hostile_names_make_no_branch(root, branch):
    with Store(root, BASE) as store, pytest.raises(UserError):
        store.start(branch)


def test_other_things_in_a_store_are_left_alone(root):
    with Store(root, BASE) as store:
        publish(store, "image", 1)
    (root / "image" / "notes.txt").write_text("mine")
    (root / "README").write_text("mine")
    (root / "base" / "1").mkdir(parents=True)
    with Store(root, BASE) as store:
        assert state(store) == {"image": (1, [1], [])}
    assert (root / "image" / "notes.txt").exists()
    assert (root / "base" / "1").exists()


def test_room_is_what_the_disk_has_and_what_the_largest_head_takes(root):
    with Store(root, BASE) as store:
        store.start("text")
        assert store.room()[1] == 0
        publish(store, "image", 1, content=bytes(5000))
        publish(store, "text", 1, content=bytes(9000))
        free, needed = store.room()
        assert needed > 9000
        assert free == pytest.approx(shutil.disk_usage(root).free, abs=2**30)

"""Manifests and digests: what survives the disk, and every damage that is found."""

import hashlib
import json
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import (
    CONFIG,
    OPTIMISER,
    WEIGHTS,
    DamagedError,
    FileEntry,
    Manifest,
    adapter_digest,
    base_digest,
    read_manifest,
    verify,
    write_manifest,
)

BASE = "sha256:" + "0" * 64


def write_files(folder):
    contents = {CONFIG: b"{}", WEIGHTS: b"\x00" * 8192, OPTIMISER: b"moments"}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in contents.items()
    }


def manifest_of(files, /, **changes):
    fields = {
        "branch": "image",
        "revision": 17,
        "parent": 16,
        "base": BASE,
        "created": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return Manifest(**(fields | {"digest": adapter_digest(files), "files": files} | changes))


def test_a_manifest_survives_the_disk(tmp_path):
    files = write_files(tmp_path)
    manifest = manifest_of(files, token=3, job="text:1", meta={"seed": 7, "metrics": {"loss": 0.5}, "phase_end": True})
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest.is_phase_end
    verify(tmp_path, manifest.files)


def test_the_digest_is_what_a_shell_computes(tmp_path):
    files = write_files(tmp_path)
    pipe = "sha256sum adapter_* | awk '{print $2\" \"$1}' | LC_ALL=C sort | sha256sum"
    shell = subprocess.run(pipe, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert adapter_digest(files) == f"sha256:{shell.split()[0]}"


def test_the_optimiser_is_no_part_of_the_digest(tmp_path):
    files = write_files(tmp_path)
    assert adapter_digest(files) == adapter_digest({name: files[name] for name in (CONFIG, WEIGHTS)})
    changed = files | {WEIGHTS: files[OPTIMISER]}
    assert adapter_digest(files) != adapter_digest(changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "sha256:" + "1" * 64},
        {"files": {}},
        {"meta": {"loss": float("nan")}},
        {"revision": -1},
        {"base": "sha256:" + "0" * 64 + "\n"},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_contradicts_itself_is_none(tmp_path, changes):
    with pytest.raises(ValidationError):
        manifest_of(write_files(tmp_path), **changes)


def test_files_of_other_names_do_not_belong_in_it(tmp_path):
    files = write_files(tmp_path)
    with pytest.raises(ValidationError, match="belong here"):
        manifest_of(files, files=files | {"adapter_model.bin": files[WEIGHTS]})


def test_a_revision_without_files_is_the_base():
    assert manifest_of({WEIGHTS: FileEntry(sha256="0" * 64, bytes=0), CONFIG: FileEntry(sha256="0" * 64, bytes=0)})
    start = Manifest(
        branch="image", revision=0, parent=None, base=BASE, digest=BASE, files={}, created=datetime.now(UTC)
    )
    assert start.digest == BASE


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[4000] ^= 1
    path.write_bytes(data)


def replace_by_link(path):
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "damage",
    [
        damage_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\x00"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        replace_by_link,
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["bit", "truncated", "longer", "empty", "missing", "link", "folder"],
)
def test_damaged_files_are_told(tmp_path, damage):
    files = write_files(tmp_path)
    damage(tmp_path / WEIGHTS)
    with pytest.raises(DamagedError, match=WEIGHTS) as error:
        verify(tmp_path, files)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"branch": "image"}', "\x00" * 4096, "[" * 100_000])
def test_a_damaged_manifest_is_told_in_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json") as error:
        read_manifest(tmp_path)
    assert "\n" not in str(error.value)


def test_the_bases_digest_knows_what_decides_its_numbers(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(locate("miniature"), base)
    digest = base_digest(base)
    assert digest == base_digest(locate("miniature"))
    (base / "chat_template.jinja").write_text("other")
    assert base_digest(base) == digest
    seen = {digest}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        before = (base / name).read_bytes()
        (base / name).write_bytes(before + b" ")
        seen.add(base_digest(base))
        (base / name).write_bytes(before)
    assert len(seen) == 4


def test_a_folder_without_weights_is_no_base(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="name the folder of a checkpoint"):
        base_digest(tmp_path)

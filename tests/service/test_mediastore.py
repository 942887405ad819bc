import asyncio
import base64
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.problems import ProblemError
from service.media import Limits, MediaError, encode_image, encode_video
from service.mediastore import MediaStore, decode

LIMITS = Limits()
UNKNOWN = f"sha256:{'0' * 64}"


def image(shade):
    return encode_image(np.full((8, 8, 3), shade, np.uint8))


def id_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def in_chunks(data, size=7):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def put(store, data):
    return asyncio.run(store.put(in_chunks(data)))


@pytest.fixture
def store(tmp_path):
    return MediaStore(tmp_path / "media", 10**6, LIMITS)


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "media").iterdir())


def test_a_file_comes_back_by_the_hash_of_its_bytes(store):
    video = encode_video(np.zeros((4, 16, 16, 3), np.uint8), 2.0)
    for data in (image(1), video):
        assert put(store, data) == id_of(data)
        assert store.get(id_of(data)) == data
        assert store.resolve(id_of(data)) == data


def test_putting_twice_keeps_one_file(store, tmp_path):
    assert put(store, image(1)) == put(store, image(1))
    assert files(tmp_path) == [id_of(image(1)).removeprefix("sha256:")]


def test_an_unknown_id_is_told_as_such(store):
    with pytest.raises(ProblemError) as caught:
        store.get(UNKNOWN)
    assert (caught.value.type, caught.value.status, caught.value.more) == ("unknown-media", 404, {"ids": [UNKNOWN]})


def test_a_file_that_was_removed_by_hand_is_unknown(store, tmp_path):
    known = put(store, image(1))
    (tmp_path / "media" / known.removeprefix("sha256:")).unlink()
    with pytest.raises(ProblemError, match="unknown-media"):
        store.get(known)
    assert put(store, image(1)) == known
    assert store.get(known) == image(1)
    (tmp_path / "media" / known.removeprefix("sha256:")).unlink()
    assert put(store, image(1)) == known
    assert store.get(known) == image(1)


def test_all_unknown_ids_of_a_request_are_told_at_once(store):
    second = f"sha256:{'1' * 64}"
    known = put(store, image(1))
    with pytest.raises(ProblemError) as caught:
        store.check_known([UNKNOWN, known, "aGVsbG8=", second, UNKNOWN])
    assert caught.value.more == {"ids": [UNKNOWN, second]}
    store.check_known([known, "aGVsbG8="])


def test_the_least_recently_used_go(tmp_path):
    black, grey, white = (image(shade) for shade in (0, 128, 255))
    store = MediaStore(tmp_path / "media", len(black) + len(grey) + len(white) - 1, LIMITS)
    put(store, black)
    put(store, grey)
    store.get(id_of(black))
    put(store, white)
    assert store.get(id_of(black)) == black
    assert store.stored_bytes == len(black) + len(white)
    with pytest.raises(ProblemError, match="unknown-media"):
        store.get(id_of(grey))


def test_the_order_of_use_outlives_the_process(tmp_path):
    black, white = image(0), image(255)
    store = MediaStore(tmp_path / "media", 10**6, LIMITS)
    put(store, black)
    put(store, white)
    for age_s, data in ((10, white), (5, black)):
        path = tmp_path / "media" / id_of(data).removeprefix("sha256:")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age_s))
    again = MediaStore(tmp_path / "media", len(black), LIMITS)
    assert again.get(id_of(black)) == black
    with pytest.raises(ProblemError, match="unknown-media"):
        again.get(id_of(white))


def test_what_a_crash_left_is_removed_and_foreign_files_are_let_be(tmp_path):
    (tmp_path / "media").mkdir()
    for name in ("tmpabc.part", "notes.txt"):
        (tmp_path / "media" / name).write_bytes(b"half")
    store = MediaStore(tmp_path / "media", 10**6, LIMITS)
    assert files(tmp_path) == ["notes.txt"]
    assert store.stored_bytes == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unsupported"),
        (b"hello, world, hello", "unsupported"),
        (b"%PDF-1.7 hello, world", "unsupported"),
        (image(1)[:20], "damaged"),
    ],
)
def test_what_is_no_image_or_video_is_not_kept(store, tmp_path, data, reason):
    with pytest.raises(MediaError) as caught:
        put(store, data)
    assert caught.value.reason == reason
    assert files(tmp_path) == []


def test_a_file_that_is_too_large_is_given_up_while_it_arrives(tmp_path):
    store = MediaStore(tmp_path / "media", 10**9, Limits(image_bytes=100, video_bytes=2**21))
    taken = []

    async def endless():
        while True:
            taken.append(1)
            yield bytes(2**20)

    with pytest.raises(MediaError) as caught:
        asyncio.run(store.put(endless()))
    assert caught.value.reason == "too-large"
    assert len(taken) == 3
    assert files(tmp_path) == []


def test_an_upload_that_breaks_off_leaves_nothing(store, tmp_path):
    async def broken():
        yield image(1)[:20]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(store.put(broken()))
    assert files(tmp_path) == []


def test_a_full_disk_leaves_nothing_and_no_entry(tmp_path, monkeypatch):
    store = MediaStore(tmp_path / "media", 10**6, LIMITS)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        put(store, image(1))
    assert files(tmp_path) == []
    with pytest.raises(ProblemError, match="unknown-media"):
        store.get(id_of(image(1)))


def test_threads_that_put_and_get_above_the_limit_never_see_a_part(tmp_path):
    images = [image(shade) for shade in range(8)]
    store = MediaStore(tmp_path / "media", 3 * len(images[0]), LIMITS)

    def work(number):
        data = images[number % len(images)]
        put(store, data)
        try:
            return store.get(id_of(data)) == data
        except ProblemError as error:
            return error.type == "unknown-media"

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(64)))
    assert store.stored_bytes <= 3 * len(images[0])
    assert len(files(tmp_path)) <= 3


@given(st.binary(max_size=50).filter(lambda data: data[:1] < b"\xfc") | st.just(b"\xff\xd8\xff\xe0 a JPEG"))
def test_base64_comes_back(data):
    assert decode(base64.b64encode(data).decode(), 1000) == data


@pytest.mark.parametrize(
    "value",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/a.png",
        "file:///etc/passwd",
        "//host/share",
        "/etc/passwd",
        "../../etc/passwd",
        "..%2fetc",
        "C:\\a.png",
        "\\\\host\\share",
        "http://[::ffff:127.0.0.1]/",
        "data:image/png;base64,aGVsbG8=",
        "sha256:../../etc/passwd",
        f"sha256:{'A' * 64}",
        f"sha256:{'0' * 63}",
        "sha512:00",
        "aGVsbG8",
        "aGVsbG8=\n",
        " aGVsbG8=",
        "aGVs\nbG8=",
        "aGVs-G8_",
        "aGVsbG8=aGVsbG8=",
        "\u00e4\u00e4\u00e4\u00e4",
        "a\x00==",
    ],
)
def test_nothing_but_strict_base64_or_an_id_is_taken(store, value):
    with pytest.raises(ProblemError) as caught:
        store.resolve(value)
    assert (caught.value.type, caught.value.status) == ("media-reference", 422)
    assert value not in str(caught.value)


@pytest.mark.parametrize("size", [98, 99, 100])
def test_base64_is_measured_before_it_is_decoded(size):
    assert len(decode(base64.b64encode(bytes(size)).decode(), 100)) == size
    with pytest.raises(MediaError, match="make it smaller"):
        decode("A" * 4000, 100)

"""The decoder of requests: the same pixels once, bounded in bytes, a few at a time."""

import asyncio
import threading

import numpy as np
import pytest

from service import inputs
from service.inputs import Decoder
from service.media import MediaError, Pixels, Sampling, Sizing, encode_image

PIXELS = Pixels(
    images=Sizing(min_pixels=1, max_pixels=64 * 64),
    videos=Sizing(min_pixels=1, max_pixels=64 * 64),
    sampling=Sampling(fps=2, min_frames=2, max_frames=8),
)


def picture(number: int) -> bytes:
    return encode_image(np.full((64, 64, 3), number, np.uint8))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many are being decoded, each time that one begins."""
    running, begun, lock = 0, list[int](), threading.Lock()
    decode = inputs.decode_image

    def counted(*args):
        nonlocal running
        with lock:
            running += 1
            begun.append(running)
        try:
            return decode(*args)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(inputs, "decode_image", counted)
    return begun


def ask(decoder: Decoder, *numbers: int) -> None:
    async def all_at_once() -> None:
        await asyncio.gather(*(decoder([picture(number)], []) for number in numbers))

    asyncio.run(all_at_once())


def test_the_same_picture_is_decoded_once(decoded: list[int]) -> None:
    decoder = Decoder(PIXELS)
    ask(decoder, 1, 1, 1)
    ask(decoder, 1)
    assert len(decoded) == 1


def test_what_is_kept_is_bounded_in_bytes(decoded: list[int]) -> None:
    decoder = Decoder(PIXELS, keep_bytes=2 * 3 * 64 * 64)
    for number in (1, 2, 1, 3, 1, 2):  # 3 drives out 2, which was used before 1
        ask(decoder, number)
    assert len(decoded) == 4


def test_no_more_are_decoded_at_a_time_than_may_be(decoded: list[int]) -> None:
    ask(Decoder(PIXELS, decoders=2), *range(20))
    assert len(decoded) == 20
    assert max(decoded) <= 2


def test_a_damaged_file_fails_its_own_request_each_time(decoded: list[int]) -> None:
    decoder = Decoder(PIXELS)
    for _ in range(2):
        with pytest.raises(MediaError):
            asyncio.run(decoder([picture(1)[:-30]], []))
    assert len(decoded) == 2

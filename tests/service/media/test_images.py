"""Images of every kind that data sets and clients send, and hostile ones."""

import copy
import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from service.media import Limits, MediaError, Sizing, check_image, decode_image, encode_image, kind

LIMITS = Limits()


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def gradient(height: int = 24, width: int = 40) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 8, columns * 5, rows + columns], axis=-1).astype(np.uint8))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_encoded_pixels_come_back_exactly(pixels_HWC):
    assert np.array_equal(np.asarray(decode_image(encode_image(pixels_HWC), LIMITS)), pixels_HWC)


def test_lossless_formats_agree():
    image = gradient()
    for data in (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True)):
        assert np.array_equal(np.asarray(decode_image(data, LIMITS)), np.asarray(image))


def test_jpeg_is_close_and_repeatable():
    data = encoded(gradient(), "JPEG", quality=95)
    once, again = (np.asarray(decode_image(data, LIMITS)) for _ in range(2))
    assert np.array_equal(once, again)
    assert np.abs(once.astype(int) - np.asarray(gradient())).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_turned_upright_once(orientation):
    upright = gradient()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    image = decode_image(encoded(stored, "PNG", exif=exif), LIMITS)
    assert np.array_equal(np.asarray(image), np.asarray(upright))
    assert 0x0112 not in image.getexif()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as the module itself does; pytest puts its own filters first
def test_an_unreadable_exif_block_does_not_spoil_the_image():
    data = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff broken")
    assert decode_image(data, LIMITS).size == (40, 24)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    grey = Image.new("LA", (2, 1), (7, 0))
    assert list(decode_image(encoded(clear, "PNG"), LIMITS).get_flattened_data()) == [(255, 255, 255), (255, 0, 0)]
    assert list(decode_image(encoded(grey, "PNG"), LIMITS).get_flattened_data()) == [(255, 255, 255)] * 2
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    data = encoded(keyed, "PNG", transparency=(1, 2, 3))
    assert decode_image(data, LIMITS).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(palette, "PNG"), LIMITS).getpixel((0, 0)) == (255, 255, 255)


def test_palettes_grey_and_one_bit_become_rgb():
    image = gradient()
    for mode in ("P", "L", "1"):
        converted = image.convert(mode)
        decoded = decode_image(encoded(converted, "PNG"), LIMITS)
        assert decoded.mode == "RGB"
        assert np.array_equal(np.asarray(decoded), np.asarray(converted.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = np.array([[0, 0x7F00, 0x80FF, 0xFFFF]], np.uint16)
    decoded = decode_image(encoded(Image.fromarray(grey), "PNG"), LIMITS)
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0x7F, 0x80, 0xFF]


def test_cmyk_becomes_rgb():
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = np.asarray(decode_image(encoded(ink, "JPEG", quality=100), LIMITS))[8, 8]
    assert (red > 250, green < 5, blue < 5) == (True, True, True)


def test_an_animation_is_refused_but_a_still_with_its_preview_is_not():
    frames = [gradient(), gradient().transpose(Image.Transpose.ROTATE_180)]
    for form in ("PNG", "WEBP"):
        with pytest.raises(MediaError, match="an animated image: send it as a video"):
            decode_image(encoded(frames[0], form, save_all=True, append_images=frames[1:]), LIMITS)
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert decode_image(data, LIMITS).size == (40, 24)


def test_an_image_is_brought_to_the_size_asked_for():
    sizing = Sizing(min_pixels=64 * 64, max_pixels=128 * 128)
    assert decode_image(encoded(gradient(24, 40), "PNG"), LIMITS, sizing).size == (96, 64)


@pytest.mark.parametrize(
    ("data", "message", "reason"),
    [
        (b"", "the image is empty", "damaged"),
        (b"\x89PNG, as the name says", "not a PNG, JPEG or WEBP image: convert it", "unsupported"),
        (encoded(gradient(), "GIF"), "not a PNG, JPEG or WEBP image: convert it", "unsupported"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not a PNG, JPEG or WEBP image: convert it", "unsupported"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "the image's header is damaged: store it again", "damaged"),
        (png(60_000, 60_000), "the image has more than the 50000000 pixels allowed: make it smaller", "too-large"),
        (png(12_000, 10_000), "the image has more than the 50000000 pixels allowed: make it smaller", "too-large"),
        (png(8_000, 8_000), "the image has 8000 x 8000 pixels, 50000000 are allowed: make it smaller", "too-large"),
        (png(64, 64), "the image is damaged or cut off: store it again", "damaged"),
        (encoded(gradient(300, 300), "JPEG")[:-2000], "the image is damaged or cut off: store it again", "damaged"),
        (encoded(gradient(), "WEBP")[:-20], "the image's header is damaged: store it again", "damaged"),
        (bytes(20 * 2**20 + 1), "the image has 20971521 bytes, 20971520 are allowed: make it smaller", "too-large"),
    ],
)
def test_a_hostile_image_is_refused_in_our_own_words(data, message, reason):
    with pytest.raises(MediaError) as caught:
        decode_image(data, LIMITS)
    assert str(caught.value).startswith(message)
    assert caught.value.reason == reason
    assert "0x" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_only_the_formats_allowed_are_opened():
    with pytest.raises(MediaError, match=r"^not a JPEG image: convert it$"):
        decode_image(encoded(gradient(), "PNG"), Limits(image_formats=("JPEG",)))


def test_the_header_alone_tells_size_and_refuses_without_decoding():
    broken = png(640, 480)
    assert check_image(io.BytesIO(broken), LIMITS) == (480, 640)
    with pytest.raises(MediaError, match="640 x 480 pixels"):
        check_image(io.BytesIO(broken), Limits(image_pixels=1000))


@given(st.binary(max_size=200), st.integers(0, 300))
def test_damage_anywhere_is_refused_or_decoded_but_never_another_error(noise, offset):
    data = bytearray(encoded(gradient(8, 8), "PNG"))
    data[offset : offset + len(noise)] = noise
    with suppress(MediaError):
        assert decode_image(bytes(data), LIMITS).mode == "RGB"


def test_an_error_survives_the_way_between_processes():
    error = copy.copy(MediaError("too big", "too-large"))  # the same way that pickle takes
    assert (str(error), error.reason) == ("too big", "too-large")


def test_kind_goes_by_content():
    assert kind(encoded(gradient(), "PNG")[:16]) == "image"
    assert kind(b"\x1a\x45\xdf\xa3" + bytes(12)) == "video"
    assert kind(b"GIF89a" + bytes(10)) is None

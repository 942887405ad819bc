"""Images: PNG, JPEG and WebP to upright RGB."""

import io
from typing import BinaryIO
from warnings import filterwarnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.media.limits import Limits, MediaError, check_bytes, check_pixels, damaged, image_format, one_of
from service.media.sizing import Sizing, fitting_size

# Both hold for the whole process. The first is a second guard behind `Limits`, the second is noise about EXIF blocks.
filterwarnings("error", category=Image.DecompressionBombWarning)
filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def check_image(file: BinaryIO, limits: Limits) -> tuple[int, int]:
    """Refuse by header: format, bytes, pixels, animation. Gives the height and width that it states."""
    image = _open_image(file, limits)
    return image.height, image.width


def decode_image(data: bytes, limits: Limits, sizing: Sizing | None = None) -> Image.Image:
    """An upright RGB image, transparency on white, resized (bicubic) when `sizing` is given.

    16-bit channels keep their high byte. The image returned carries no EXIF block, so nothing turns it twice.
    """
    opened = _open_image(io.BytesIO(data), limits)
    with damaged("the image is damaged or cut off: store it again"):
        opened.load()
        image = _upright(_rgb(opened), opened)
    image.info = {}
    return image if sizing is None else resized(image, *fitting_size(image.height, image.width, sizing))


def encode_image(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """RGB pixels as a PNG file that `decode_image` gives back exactly."""
    file = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def resized(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _open_image(file: BinaryIO, limits: Limits) -> Image.Image:
    format = image_format(check_bytes("image", file, limits.image_bytes))
    if format is None or format not in limits.image_formats:
        raise MediaError(f"not a {one_of(limits.image_formats)} image: convert it", "unsupported")
    try:
        image = Image.open(file, formats=(format,))  # reads the header; pixels are decoded by `load`
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        message = f"the image has more than the {limits.image_pixels} pixels allowed: make it smaller"
        raise MediaError(message, "too-large") from None
    except Exception:
        raise MediaError("the image's header is damaged: store it again") from None
    check_pixels("image", image.width, image.height, limits.image_pixels)
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's MPO file is a still and its preview
        raise MediaError("an animated image: send it as a video", "unsupported")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it to white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")  # a palette's transparent entry, too
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {  # by its value; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """`image` turned as the EXIF block of `opened` says."""
    try:
        turn = _TURNS.get(int(opened.getexif().get(_ORIENTATION, 1)))
    except Exception:  # the pixels are whole, and an unreadable EXIF block says nothing about them
        turn = None
    return image if turn is None else image.transpose(turn)

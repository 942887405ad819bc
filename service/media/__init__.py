"""Bytes in, pixels out: the one decoder of images and video.

The service decodes with it what arrives over HTTP and the trainer what it trains on, so both see the same pixels and
the same times. Everything is explicit and repeatable: which formats, which frames, which size, one thread, exact
colour conversion.

Nothing is decoded before its header was checked against `Limits`, and no decoder outside the allow list is opened.
An error holds neither a library's words nor a path: those can carry addresses of the process. What is wrong goes into
a `MediaError`; whoever knows the file, the row or the request puts that in front.

Left out: URLs, sound, subtitles, colour profiles, HDR tone mapping, non-square pixels, and every video stream of a
file but the first. An animated image is refused, because its first frame alone would hide what it shows.
"""

from service.media.images import check_image, decode_image, encode_image
from service.media.limits import Limits, MediaError, kind
from service.media.sizing import Pixels, Sampling, Sizing, fitting_size, sample
from service.media.video import Video, check_video, decode_video, encode_video

__all__ = [
    "Limits",
    "MediaError",
    "Pixels",
    "Sampling",
    "Sizing",
    "Video",
    "check_image",
    "check_video",
    "decode_image",
    "decode_video",
    "encode_image",
    "encode_video",
    "fitting_size",
    "kind",
    "sample",
]

"""Makes PyPI's torchvision importable beside a CPU build of torch.

PyPI's torchvision is a CUDA build. Beside CPU torch its compiled library does not load, and its import then fails
because two operators it decorates are unknown. Declaring them is enough: nothing here calls them. torch runs this
as a `torch.backends` entry point at the end of its own import, so it holds in every process, vLLM's included.
"""

from importlib.util import find_spec
from pathlib import Path

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_library: object = None  # a Library withdraws its operators when it is collected


def declare() -> None:
    """Declare torchvision's operators where its own compiled library cannot."""
    import torch  # not at the top: torch loads this module, so whoever imported it first would come in a circle

    global _library
    spec = find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return
    # Asked of the file, since importing torchvision is what does not work yet.
    if "+cu" not in Path(spec.origin).with_name("version.py").read_text():
        return  # a CPU build loads its own library
    library = torch.library.Library("torchvision", "FRAGMENT")
    for signature in _OPERATORS:
        library.define(signature)
    _library = library

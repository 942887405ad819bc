"""Precision: the types that weights are computed in, and the one that suits this machine."""

from typing import Any, Literal

Dtype = Literal["bfloat16", "float32"]


def dtype_here(setting: Literal["auto"] | Dtype) -> Dtype:
    """The type that a setting means here. Auto is bfloat16 on a card, and on a processor with instructions for it:
    another multiplies bfloat16 many times slower than float32."""
    if setting != "auto":
        return setting
    import torch  # which takes seconds

    mkldnn: Any = torch.ops.mkldnn
    return "bfloat16" if torch.cuda.is_available() or mkldnn._is_mkldnn_bf16_supported() else "float32"

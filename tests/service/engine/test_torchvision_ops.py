"""torchvision's CUDA build imports beside CPU torch, in a process that imports nothing of ours."""

import subprocess
import sys

import pytest
import torch


@pytest.mark.skipif(torch.version.cuda is not None, reason="CUDA torch loads torchvision's own library")
def test_torchvision_imports_and_transformers_uses_it() -> None:
    program = "import torchvision, torch; print(torch.ops.torchvision.nms.default._schema)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor\n"

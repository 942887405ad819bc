"""A real PEFT adapter of the miniature, which is also the reference for names and shapes."""

import shutil

import pytest

from adapters.base import locate


@pytest.fixture(scope="session")
def saved_by_peft(tmp_path_factory):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    from adapters.validate import TARGETS

    disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(locate("miniature"))
    folder = tmp_path_factory.mktemp("peft")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=sorted(TARGETS), init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(saved_by_peft, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(saved_by_peft, tmp_path / "adapter")

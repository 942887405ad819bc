"""A core of three processes, each with a third of the base's heads: it scores as PEFT does."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.base import locate
from tests.engine.conftest import EngineThread
from tests.engine.reference import Reference
from tests.engine.test_scores import CASES, differences, random_ids

pytestmark = [pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600)]
TOKENS = 384
"""Three times 128. The miniature has 320, which three cannot share."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with more tokens than its tokenizer knows; it has six heads, and three of keys and values."""
    miniature, folder = locate("miniature"), tmp_path_factory.mktemp("base")
    model = Qwen3VLForConditionalGeneration.from_pretrained(miniature, dtype=torch.float32)
    torch.manual_seed(0)
    model.resize_token_embeddings(TOKENS, mean_resizing=False)
    model.save_pretrained(folder)
    for file in miniature.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.fixture(scope="module")
def reference(base: Path, adapter_folders) -> Reference:
    model = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32).eval()
    return Reference(model, Qwen3VLProcessor.from_pretrained(base), adapter_folders)


@pytest.fixture(scope="module")
def split(base: Path, adapter_folders) -> Iterator[tuple[EngineThread, dict]]:
    thread = EngineThread("float32", base, tensor_parallel=3)
    loaded = {name: thread.run(thread.engine.load(f"{name}@1", folder)) for name, folder in adapter_folders.items()}
    yield thread, loaded | {"base": None}
    thread.close()


@pytest.mark.parametrize("case", CASES)
def test_a_base_split_over_processes_scores_as_peft_does(case: str, split, reference) -> None:
    thread, loaded = split
    messages, media = CASES[case]
    completions = [random_ids(count, seed) for seed, count in enumerate((1, 17, 40))]
    errors = differences(thread, reference, loaded, thread.engine.chat_ids(messages), media, completions)
    assert errors.max() < 1e-3
    assert errors.mean() < 1e-5

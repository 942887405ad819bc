"""One real engine in float32 in an event loop of its own, one service, and three PEFT adapters, for all tests here."""

import asyncio
import gc
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from adapters.base import locate
from service.engine.arguments import LORA_MODULES
from service.engine.vllm import Engine, start_engine
from service.settings import EngineNumbers, MediaNumbers
from tests.engine.reference import Reference
from tests.engine.service_process import ServiceProcess
from tests.page.folder import RunWriter

ADAPTERS = {"thin": (2, 4), "plain": (8, 8), "strong": (16, 32)}  # rank, alpha


class EngineThread:
    """Runs an engine's coroutines from plain tests."""

    def __init__(self, dtype: Literal["bfloat16", "float32"], base: Path, **numbers: Any) -> None:
        settings = EngineNumbers(dtype=dtype, max_model_len=512, max_lora_rank=16, **numbers)
        media = MediaNumbers(max_images=2, max_videos=2)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        self.engine: Engine = self.run(self._stack.enter_async_context(start_engine(base, settings, media)))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=280)

    def close(self) -> None:
        self.run(self._stack.aclose())
        del self.engine
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        gc.collect()  # vLLM's client must not outlive the modules that its end needs


@pytest.fixture(scope="package")
def engine_thread():
    thread = EngineThread("float32", locate("miniature"))
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def base():
    model = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32).eval()
    return model, Qwen3VLProcessor.from_pretrained(locate("miniature"))


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters with random A and B, as PEFT saves them."""
    folders = {}
    for seed, (name, (rank, alpha)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(LORA_MODULES), init_lora_weights=False)
        peft = get_peft_model(model, config)
        for parameter_name, parameter in peft.named_parameters():
            if "lora_B" in parameter_name:  # as strong as after some hundred steps
                parameter.data.mul_(0.1)
        folders[name] = tmp_path_factory.mktemp(name)
        peft.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory, adapter_folders: dict[str, Path]) -> Iterator[ServiceProcess]:
    """For tests that leave it alive, each with branches of its own; it has an adapter `merged`, and the run demo-1."""
    extra = f"--extra=merged={adapter_folders['thin']}"
    folder = tmp_path_factory.mktemp("service")
    RunWriter(folder)  # a run that has told how it began
    process = ServiceProcess(folder / "store", "--dtype=float32", f"--runs={folder / 'runs'}", extra)
    yield process
    process.stop()


@pytest.fixture(scope="package")
def loaded(engine_thread: EngineThread, adapter_folders: dict[str, Path]):
    """The adapters in the engine; None is the base."""
    adapters = {
        name: engine_thread.run(engine_thread.engine.load(f"{name}@1", folder))
        for name, folder in adapter_folders.items()
    }
    return adapters | {"base": None}


@pytest.fixture(scope="session")
def reference(base: tuple[Any, Any], adapter_folders: dict[str, Path]) -> Reference:
    return Reference(*base, adapter_folders)

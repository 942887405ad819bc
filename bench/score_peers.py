"""The peers of `coevo bench score`: `python -m bench.score_peers PEER CASE`. The last line of stdout is JSON."""

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapters.architectures import read_architecture
from adapters.base import locate
from adapters.precision import dtype_here
from bench.served import served
from service.engine.arguments import LORA_MODULES
from service.processes import cpu_seconds

GROUP, COMPLETION, ADAPTERS = 8, 64, 3
SIDE = 16 * 32  # 256 cells
LENGTH = 512


@dataclass(frozen=True, slots=True)
class Group:
    messages: list[dict[str, Any]]
    picture: Image.Image | None
    completions: list[list[int]]


@dataclass(frozen=True, slots=True)
class Case:
    """A base, and where the adapters for it lie."""

    base: str
    modules: tuple[str, ...]
    folder: str
    rounds: int

    @property
    def in_words(self) -> bool:
        return self.base != "miniature"

    @property
    def growth(self) -> tuple[int, ...]:
        """Numbers of adapters; of a real base more would take minutes, and gigabytes."""
        return (1, 2, 4) if self.in_words else (1, 2, 4, 8, 16)

    @property
    def adapters(self) -> list[Path]:
        return [Path(self.folder, f"a{number}") for number in range(self.growth[-1])]

    def group(self, number: int) -> Group:
        """The group of a round: its prompt and its completions are in no other."""
        tokens, rng = random.Random(number), np.random.default_rng(number)
        if not self.in_words:
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            content = [{"type": "image"}, {"type": "text", "text": "21+red?"}]
            completions = [[tokens.randrange(256) for _ in range(COMPLETION)] for _ in range(GROUP)]
            return Group([{"role": "user", "content": content}], Image.fromarray(pixels), completions)
        from transformers import AutoTokenizer

        from bench.step_lab import plain_ids, problem

        ids = plain_ids(AutoTokenizer.from_pretrained(locate(self.base)))
        completions = [tokens.choices(ids, k=COMPLETION) for _ in range(GROUP)]
        return Group([{"role": "user", "content": problem(tokens)}], None, completions)


def load_model(base: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3VLForConditionalGeneration

    has_vision = read_architecture(locate(base)).has_vision
    model_class: Any = Qwen3VLForConditionalGeneration if has_vision else AutoModelForCausalLM
    return model_class.from_pretrained(locate(base), dtype=getattr(torch, dtype_here("auto")))


def save_adapters(base: str, folders: Sequence[Path], *, modules: Sequence[str] = LORA_MODULES, std: float) -> None:
    """Random adapters of rank 16."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(modules), init_lora_weights=False)
    peft = get_peft_model(load_model(base).float(), config)
    for number, folder in enumerate(folders):
        torch.manual_seed(number)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
        peft.save_pretrained(str(folder))


class Watch:
    """Seconds of rounds, and those that the CPU computed in this process and those below it."""

    def __init__(self) -> None:
        self._wall, self._cpu = list[float](), list[float]()

    @contextmanager
    def round(self) -> Generator[None]:
        began, cpu = time.perf_counter(), cpu_seconds()
        yield
        self._wall.append(time.perf_counter() - began)
        self._cpu.append(cpu_seconds() - cpu)

    def medians(self) -> tuple[float, float]:
        """Medians of the rounds after the first, which warms up."""
        return statistics.median(self._wall[1:]), statistics.median(self._cpu[1:])


Medians = dict[str, tuple[float, float]]


def run_stock(case: Case) -> Medians:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(str(locate(case.base)), max_model_len=LENGTH, max_lora_rank=16, max_loras=ADAPTERS, enable_lora=True,
              lora_target_modules=list(LORA_MODULES), enforce_eager=True, dtype=dtype_here("auto"))  # fmt: skip
    tokenizer: Any = llm.get_tokenizer()
    requests = [LoRARequest(f"a{n}", n + 1, str(folder)) for n, folder in enumerate(case.adapters[:ADAPTERS])]
    watch = Watch()
    for number in range(1 + case.rounds):
        batch = case.group(number)
        prompt = tokenizer.apply_chat_template(batch.messages, add_generation_prompt=True, return_dict=False)
        media = {"multi_modal_data": {"image": batch.picture}} if batch.picture else {}
        with watch.round():
            for request in requests:
                inputs: Any = [{"prompt_token_ids": [*prompt, *ids], **media} for ids in batch.completions]
                params = SamplingParams(max_tokens=1, prompt_logprobs=0)
                llm.generate(inputs, params, lora_request=request, use_tqdm=False)
    return {"score_stock": watch.medians()}


def run_hf(case: Case) -> Medians:
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer, Qwen3VLProcessor

    torch.set_num_threads(1)  # as the engine has
    model: Any = PeftModel.from_pretrained(load_model(case.base), case.adapters[0], adapter_name="a0").eval()
    for number in range(1, ADAPTERS):
        model.load_adapter(case.adapters[number], adapter_name=f"a{number}")
    reader: Any = (AutoTokenizer if case.in_words else Qwen3VLProcessor).from_pretrained(locate(case.base))
    watch = Watch()
    for number in range(1 + case.rounds):
        batch = case.group(number)
        text = reader.apply_chat_template(batch.messages, add_generation_prompt=True, tokenize=False)
        with watch.round():
            media: Any = {"images": [batch.picture] * GROUP} if batch.picture else {}
            inputs = dict(reader(text=[text] * GROUP, return_tensors="pt", **media))
            completions = torch.tensor(batch.completions)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], completions], dim=1)
            del inputs["attention_mask"]  # the rows are of one length
            if "mm_token_type_ids" in inputs:
                kinds = [inputs["mm_token_type_ids"], torch.zeros_like(completions)]
                inputs["mm_token_type_ids"] = torch.cat(kinds, dim=1)
            with torch.inference_mode():
                for name in range(ADAPTERS):
                    model.set_adapter(f"a{name}")
                    logits = model(**inputs, logits_to_keep=COMPLETION + 1).logits[:, :-1]
                    logits.float().log_softmax(-1).gather(-1, completions[..., None])
    return {"score_hf": watch.medians()}


def run_engine(case: Case) -> Medians:
    """No checks, no second pass, no HTTP."""
    from service.engine.vllm import start_engine
    from service.settings import EngineNumbers, MediaNumbers

    async def measure() -> Watch:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        numbers = EngineNumbers(max_model_len=LENGTH, max_lora_rank=16, max_loras=len(case.adapters))
        async with start_engine(locate(case.base), numbers, MediaNumbers()) as engine:
            client: Any = engine._client
            requests = [LoRARequest(f"a{n}", n + 1, str(folder)) for n, folder in enumerate(case.adapters[:ADAPTERS])]
            for request in requests:
                await client.add_lora(request)
            params = SamplingParams(
                max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False, skip_reading_prefix_cache=False
            )

            async def generate(tokens: dict[str, Any], request: Any, key: str) -> None:
                async for _ in client.generate(tokens, params, key, lora_request=request):
                    pass

            watch = Watch()
            for number in range(1 + case.rounds):
                batch = case.group(number)
                prompt = engine.chat_ids(batch.messages)
                media: dict[str, Any] = {}
                if batch.picture:
                    media = {"multi_modal_data": {"image": [batch.picture]}}
                    media["multi_modal_uuids"] = {"image": [f"p{number}"]}
                with watch.round():
                    await asyncio.gather(
                        *(
                            generate(
                                {"prompt_token_ids": [*prompt, *ids], **media},
                                request,
                                f"{number}-{request.lora_name}-{index}",
                            )
                            for request in requests
                            for index, ids in enumerate(batch.completions)
                        )
                    )
            return watch

    return {"score_engine": asyncio.run(measure()).medians()}


def run_service(case: Case) -> Medians:
    import httpx

    from service.media import encode_image

    flags = (f"--base={locate(case.base)}", f"--max-model-len={LENGTH}", "--max-lora-rank=16")
    with served(*flags, f"--max-loras={len(case.adapters)}") as url, httpx.Client(base_url=url, timeout=600) as http:
        for number, folder in enumerate(case.adapters):
            files = {name: (folder / name).read_bytes() for name in
                     ("adapter_model.safetensors", "adapter_config.json")}  # fmt: skip
            http.put(f"/adapters/a{number}/1", data={"parent": "0"}, files=files).raise_for_status()

        def score(first: int, adapters: int) -> tuple[float, float]:
            watch = Watch()
            for number in range(first, first + 1 + case.rounds):
                batch = case.group(number)
                picture = encode_image(np.asarray(batch.picture)) if batch.picture else None
                with watch.round():
                    # The client uploads a picture once as well, and names it in each sequence.
                    names = {"images": [http.put("/media", content=picture).json()["id"]]} if picture else {}
                    sequences = [
                        {"prompt": {"messages": batch.messages}, "completion": ids, **names}
                        for ids in batch.completions
                    ]
                    response = http.post(
                        "/logprobs",
                        params=[("adapter", f"a{index}") for index in range(adapters)],
                        json={"sequences": sequences},
                        headers={"accept": "application/vnd.safetensors"},
                    )
                    response.raise_for_status()
            return watch.medians()

        medians = {"score_service": score(0, ADAPTERS)}
        return medians | {f"score_growth_{adapters}": score(1000 * adapters, adapters) for adapters in case.growth}


PEERS: dict[str, Callable[[Case], Medians]] = {
    "stock": run_stock,
    "hf": run_hf,
    "engine": run_engine,
    "service": run_service,
}

if __name__ == "__main__":
    name, described = sys.argv[1:]
    print(json.dumps(PEERS[name](Case(**json.loads(described)))))

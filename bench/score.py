"""Seconds to score a group under several adapters: the service beside stock vLLM, transformers, and a bare script.

    coevo bench score [--json FILE] [--rounds 7]

A group is 8 completions of 64 tokens after one image prompt of 270 tokens, scored by 3 adapters, on the miniature.
Every round has a new image and new completions, so no cache knows them. The peers, each in a process of its own:

stock     vLLM as it is: its CPU LoRA, default settings of `prompt_logprobs`, one adapter after another
hf        transformers with PEFT, `set_adapter`, the eight completions in one padded batch
engine    the best script by hand: AsyncLLM with our kernel, all adapters at once, prefix cache on
service   ours, over HTTP, answers as safetensors

and for the service 1, 2, 4, 8 and 16 adapters. Figures are medians of the rounds after the first.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adapters.base import locate
from bench.command import positive
from bench.served import served

GROUP, COMPLETION, ADAPTERS, MOST = 8, 64, 3, 16
SIDE = 16 * 32  # 256 cells
LENGTH = 512
GROWTH = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Group:
    picture: Image.Image
    completions: list[list[int]]


def group(number: int) -> Group:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    tokens = random.Random(number)
    return Group(Image.fromarray(pixels), [[tokens.randrange(256) for _ in range(COMPLETION)] for _ in range(GROUP)])


def messages() -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "21+red?"}]}]


def save_adapters(folder: Path, count: int = MOST, std: float = 0.02) -> None:
    """Random adapters of rank 16 on the seven projections, `a0` and so on."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3VLForConditionalGeneration

    from service.engine.arguments import LORA_MODULES

    model = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=list(LORA_MODULES), init_lora_weights=False)
    peft = get_peft_model(model, config)
    for number in range(count):
        torch.manual_seed(number)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
        peft.save_pretrained(str(folder / f"a{number}"))


def median(times: Sequence[float]) -> float:
    return statistics.median(times[1:])


# ---- the peers ----


def run_stock(folders: Sequence[Path], rounds: int) -> dict[str, float]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from service.engine.arguments import LORA_MODULES

    llm = LLM(str(locate("miniature")), max_model_len=LENGTH, max_lora_rank=16, max_loras=ADAPTERS, enable_lora=True,
              lora_target_modules=list(LORA_MODULES), enforce_eager=True)  # fmt: skip
    tokenizer: Any = llm.get_tokenizer()
    prompt = tokenizer.apply_chat_template(messages(), add_generation_prompt=True, return_dict=False)
    requests = [LoRARequest(f"a{n}", n + 1, str(folder)) for n, folder in enumerate(folders[:ADAPTERS])]
    times: list[float] = []
    for number in range(rounds):
        batch = group(number)
        began = time.perf_counter()
        for request in requests:
            inputs: Any = [
                {"prompt_token_ids": [*prompt, *ids], "multi_modal_data": {"image": batch.picture}}
                for ids in batch.completions
            ]
            llm.generate(inputs, SamplingParams(max_tokens=1, prompt_logprobs=0), lora_request=request, use_tqdm=False)
        times.append(time.perf_counter() - began)
    return {"score_stock": median(times)}


def run_hf(folders: Sequence[Path], rounds: int) -> dict[str, float]:
    import torch
    from peft import PeftModel
    from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

    torch.set_num_threads(1)  # as the engine has
    base = Qwen3VLForConditionalGeneration.from_pretrained(locate("miniature"), dtype=torch.bfloat16)
    model: Any = PeftModel.from_pretrained(base, folders[0], adapter_name="a0").eval()
    for number in range(1, ADAPTERS):
        model.load_adapter(folders[number], adapter_name=f"a{number}")
    processor: Any = Qwen3VLProcessor.from_pretrained(locate("miniature"))
    text = processor.apply_chat_template(messages(), add_generation_prompt=True, tokenize=False)
    times: list[float] = []
    for number in range(rounds):
        batch = group(number)
        began = time.perf_counter()
        inputs = processor(text=[text] * GROUP, images=[batch.picture] * GROUP, return_tensors="pt")
        completions = torch.tensor(batch.completions)
        ids = torch.cat([inputs["input_ids"], completions], dim=1)
        kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(completions)], dim=1)
        with torch.inference_mode():
            for name in range(ADAPTERS):
                model.set_adapter(f"a{name}")
                logits = model(
                    input_ids=ids,
                    mm_token_type_ids=kinds,
                    pixel_values=inputs["pixel_values"],
                    image_grid_thw=inputs["image_grid_thw"],
                    logits_to_keep=COMPLETION + 1,
                ).logits[:, :-1]
                logits.float().log_softmax(-1).gather(-1, completions[..., None])
        times.append(time.perf_counter() - began)
    return {"score_hf": median(times)}


def run_engine(folders: Sequence[Path], rounds: int) -> dict[str, float]:
    """No checks, no second pass, no HTTP."""
    from service.engine.vllm import start_engine
    from service.settings import EngineNumbers, MediaNumbers

    async def measure() -> list[float]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        numbers = EngineNumbers(max_model_len=LENGTH, max_lora_rank=16, max_loras=MOST)
        async with start_engine(locate("miniature"), numbers, MediaNumbers()) as engine:
            client: Any = engine._client
            prompt = engine.chat_ids(messages())
            requests = [LoRARequest(f"a{n}", n + 1, str(folder)) for n, folder in enumerate(folders[:ADAPTERS])]
            for request in requests:
                await client.add_lora(request)
            params = SamplingParams(
                max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False, skip_reading_prefix_cache=False
            )

            async def generate(ids: list[int], picture: Image.Image, name: str, request: Any, key: str) -> None:
                tokens = {
                    "prompt_token_ids": [*prompt, *ids],
                    "multi_modal_data": {"image": [picture]},
                    "multi_modal_uuids": {"image": [name]},
                }
                async for _ in client.generate(tokens, params, key, lora_request=request):
                    pass

            times: list[float] = []
            for number in range(rounds):
                batch = group(number)
                began = time.perf_counter()
                await asyncio.gather(
                    *(
                        generate(ids, batch.picture, f"p{number}", request, f"{number}-{request.lora_name}-{index}")
                        for request in requests
                        for index, ids in enumerate(batch.completions)
                    )
                )
                times.append(time.perf_counter() - began)
            return times

    return {"score_engine": median(asyncio.run(measure()))}


def run_service(folders: Sequence[Path], rounds: int) -> dict[str, float]:
    import httpx

    from service.media import encode_image

    flags = (f"--max-model-len={LENGTH}", "--max-lora-rank=16", f"--max-loras={MOST}")
    with served(*flags) as url, httpx.Client(base_url=url, timeout=120) as http:
        for number, folder in enumerate(folders):
            files = {name: (folder / name).read_bytes() for name in
                     ("adapter_model.safetensors", "adapter_config.json")}  # fmt: skip
            http.put(f"/adapters/a{number}/1", data={"parent": "0"}, files=files).raise_for_status()

        def score(number: int, adapters: int) -> float:
            batch = group(number)
            picture = encode_image(np.asarray(batch.picture))
            began = time.perf_counter()
            name = http.put("/media", content=picture).json()["id"]  # as the client does
            sequences = [
                {"prompt": {"messages": messages()}, "completion": ids, "images": [name]} for ids in batch.completions
            ]
            response = http.post(
                "/logprobs",
                params=[("adapter", f"a{index}") for index in range(adapters)],
                json={"sequences": sequences},
                headers={"accept": "application/vnd.safetensors"},
            )
            response.raise_for_status()
            return time.perf_counter() - began

        medians = {"score_service": median([score(number, ADAPTERS) for number in range(rounds)])}
        for adapters in GROWTH:
            numbers = range(1000 * adapters, 1000 * adapters + rounds)
            medians[f"score_growth_{adapters}"] = median([score(number, adapters) for number in numbers])
        return medians


PEERS: dict[str, Callable[[Sequence[Path], int], dict[str, float]]] = {
    "stock": run_stock,
    "hf": run_hf,
    "engine": run_engine,
    "service": run_service,
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def measure(peer: str, folder: Path, rounds: int) -> dict[str, float]:
    """In a process of its own; the stock engine without our plugin."""
    plugins = {"VLLM_PLUGINS": "none"} if peer == "stock" else {}
    command = [sys.executable, "-m", "bench.score", "--peer", peer, "--folder", str(folder), "--rounds", str(rounds)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT | plugins, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def run(arguments: argparse.Namespace) -> int:
    if arguments.peer:
        folders = [arguments.folder / f"a{number}" for number in range(MOST)]
        print(json.dumps(PEERS[arguments.peer](folders, arguments.rounds)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        save_adapters(Path(folder))
        medians: dict[str, float] = {}
        for peer in PEERS:
            medians |= measure(peer, Path(folder), arguments.rounds)
    service_seconds = medians.pop("score_service")
    rows = [_row(name, service_seconds, name.removeprefix("score_"), seconds) for name, seconds in medians.items()
            if "growth" not in name]  # fmt: skip
    rows += [_row(name, seconds, "score_growth_1", medians["score_growth_1"]) for name, seconds in medians.items()
             if "growth" in name]  # fmt: skip
    for row in rows:
        print(f"{row['what']}: {row['ours']:.3f} s, {row['peer']} {row['theirs']:.3f} s, ratio {row['ratio']:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _row(label: str, value: float, peer: str, peer_value: float) -> dict[str, Any]:
    return {"what": label, "unit": "s", "ours": value, "peer": peer, "theirs": peer_value, "ratio": value / peer_value}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def main() -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())

"""Seconds to examine four models on the miniature's questions, beside the engine alone that is given the same prompts.

    coevo bench generate [--json FILE] [--questions 500] [--rounds 3]

Four models, the base and three adapters, answer 500 questions of each capability by their likeliest tokens. Ours is
`examine` through the service: HTTP, media, judging, every answer kept. The peer is vLLM's AsyncLLM in a bare script,
with our CPU kernel and the same sizes, given all prompts at once with their media decoded, and nobody reads what it
answers. In turns, each in a process of its own that has loaded before; figures are medians of the rounds.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from adapters.base import locate
from bench.command import positive
from bench.score import ENVIRONMENT
from bench.score_peers import save_adapters
from bench.served import served
from trainer.evaluation.exams import Exam, decoder, examine, exams
from trainer.recipe import Recipe
from trainer.recipe.file import load

T = TypeVar("T", bound=BaseModel)
RECIPE = Path("miniature")
ADAPTERS = 3
STD = 0.004
"""The deviation of the adapters' weights: near enough to the base that answers end by themselves."""


def recipe_of(questions: int) -> Recipe:
    changes = [f"evaluation.questions={questions}", "evaluation.answers.samples=0", "evaluation.overlap_prompts=0"]
    return load(RECIPE, changes)


def run(arguments: argparse.Namespace) -> int:
    if arguments.folder:
        asyncio.run(_engine(arguments.folder, arguments.questions))
        return 0
    with tempfile.TemporaryDirectory(prefix="coevo-bench-") as name:
        folder = Path(name)
        save_adapters("miniature", [folder / f"a{number}" for number in range(ADAPTERS)], std=STD)
        seconds, peer_seconds = _measured(folder, arguments.questions, arguments.rounds)
    row = {"what": "generate", "unit": "s", "ours": statistics.median(seconds), "peer": "engine alone",
           "theirs": statistics.median(peer_seconds)}  # fmt: skip
    row |= {"ratio": row["ours"] / row["theirs"], "rounds": {"ours": seconds, "theirs": peer_seconds}}
    print(f"generate: {row['ours']:.1f} s, engine alone {row['theirs']:.1f} s, ratio {row['ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps([row], indent=2) + "\n")
    return 0


def _measured(folder: Path, questions: int, rounds: int) -> tuple[list[float], list[float]]:
    """In turns: what else the machine does meets both."""
    from trainer.rewards.pool import RewardPool

    recipe = recipe_of(questions)
    exam_list = exams(recipe)
    command = [sys.executable, "-m", "bench.generate", f"--folder={folder}", f"--questions={questions}"]
    seconds: list[float] = []
    peer_seconds: list[float] = []
    with (
        served(str(RECIPE)) as url,
        RewardPool(num_children=1) as pool,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
        ) as peer,
    ):
        assert peer.stdin is not None
        assert peer.stdout is not None
        models = ["base", *_published(url, folder)]
        assert json.loads(peer.stdout.readline()) == "ready"
        for number in range(rounds + 1):  # the first one warms both up
            began = time.perf_counter()
            asyncio.run(_examined(url, pool, models, exam_list, recipe))
            seconds.append(time.perf_counter() - began)
            peer.stdin.write("go\n")
            peer.stdin.flush()
            peer_seconds.append(json.loads(peer.stdout.readline()))
            print(f"round {number}: {seconds[-1]:.1f} s, engine alone {peer_seconds[-1]:.1f} s", flush=True)
        peer.stdin.close()
    return seconds[1:], peer_seconds[1:]


def _published(url: str, folder: Path) -> list[str]:
    import httpx

    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(ADAPTERS):
            names = ("adapter_model.safetensors", "adapter_config.json")
            files = {name: (folder / f"a{number}" / name).read_bytes() for name in names}
            http.put(f"/adapters/a{number}/1", data={"parent": "0"}, files=files).raise_for_status()
    return [f"a{number}@1" for number in range(ADAPTERS)]


async def _examined(url: str, pool: Any, models: Sequence[str], exam_list: Sequence[Exam], recipe: Recipe) -> None:
    from clients.client import AsyncClient

    longest = recipe.rollout.max_completion_tokens
    async with AsyncClient(url) as client:
        await examine(client, pool, models, exam_list, seed=0, max_tokens=longest, decode=decoder(recipe))


async def _engine(folder: Path, questions: int) -> None:
    """The peer: says that it is ready, then answers every line with the seconds that it took."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    from service.engine.vllm import start_engine
    from service.inputs import Decoder
    from service.settings import EngineNumbers, MediaNumbers
    from trainer.data.lengths import pixels_of
    from trainer.recipe.serving import service_numbers

    recipe = recipe_of(questions)
    numbers = service_numbers(recipe)

    def numbers_of(model: type[T]) -> T:
        return model.model_validate({name: value for name, value in numbers.items() if name in model.model_fields})

    decode = Decoder(pixels_of(recipe.media), keep_bytes=2**33)
    async with start_engine(locate("miniature"), numbers_of(EngineNumbers), numbers_of(MediaNumbers)) as engine:
        client: Any = engine._client
        requests = [None, *(LoRARequest(f"a{n}", n + 1, str(folder / f"a{n}")) for n in range(ADAPTERS))]
        for request in requests[1:]:
            await client.add_lora(request)
        inputs: list[Any] = []
        for exam in exams(recipe):
            for index in range(len(exam.prompts)):
                prompt = exam.prompts[index]
                media = await decode(prompt.images, prompt.videos)
                inputs.append(_input(engine.chat_ids(prompt.messages), media))
        params = SamplingParams(
            max_tokens=recipe.rollout.max_completion_tokens, temperature=0.0, stop_token_ids=[engine.eos_id],
            detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip

        async def generate(tokens: Any, request: Any, key: str) -> None:
            async for _ in client.generate(tokens, params, key, lora_request=request):
                pass

        print(json.dumps("ready"), flush=True)
        for number, _ in enumerate(iter(sys.stdin.readline, "")):
            began = time.perf_counter()
            await client.reset_prefix_cache()
            pairs = [(tokens, request) for request in requests for tokens in inputs]
            await asyncio.gather(*(generate(*pair, f"{number}-{index}") for index, pair in enumerate(pairs)))
            print(json.dumps(time.perf_counter() - began), flush=True)


def _input(ids: list[int], media: Any) -> dict[str, Any]:
    tokens: dict[str, Any] = {"prompt_token_ids": ids}
    if media.images:
        tokens["multi_modal_data"] = {"image": [image for _, image in media.images]}
        tokens["multi_modal_uuids"] = {"image": [name for name, _ in media.images]}
    if media.videos:
        videos = [(video.frames_THWC, video.metadata() | {"do_sample_frames": False}) for _, video in media.videos]
        tokens["multi_modal_data"] = {"video": videos}
        tokens["multi_modal_uuids"] = {"video": [name for name, _ in media.videos]}
    return tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the row to this file as well")
    parser.add_argument("--questions", type=positive, default=500, metavar="N", help="of each capability")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))

"""What vLLM is started with: variables that it reads when it is imported, and arguments; checked against base and host.

Left out: what is mended in its processes (`vllm.prepare_process`).
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from adapters.errors import UserError
from adapters.precision import Dtype, dtype_here
from service.engine.finite import COUNT_NANS
from service.settings import EngineNumbers, MediaNumbers

LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CACHED_ADAPTERS = 32
"""Adapters that the engine keeps, in its slots and beside them in memory; the registry's capacity too, so that vLLM
does not evict what the registry takes for loaded."""
# `media` has sized the pixels and chosen the frames; the processor only cuts patches.
PROCESSING = {
    "images_kwargs": {"do_resize": False},
    "videos_kwargs": {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False},
}
VOCABULARY_STEP = 64  # to a multiple of it vLLM fills up the embeddings
SOCKET_FOLDER_LENGTH = 70  # the system takes 107 bytes, and vLLM names a socket with 36


def prepare(base: Path, settings: EngineNumbers, media: MediaNumbers) -> tuple[Any, Dtype]:
    """vLLM's arguments, and what it reads from variables when it is imported."""
    for name, value in _environment(settings.kv_cache_gib).items():
        os.environ.setdefault(name, value)  # whoever set it himself knows better
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    _check_parts(base, settings)
    dtype = dtype_here(settings.dtype)
    return make_arg_parser(FlexibleArgumentParser()).parse_args(_arguments(base, dtype, settings, media)), dtype


def _check_parts(base: Path, settings: EngineNumbers) -> None:
    """Whether the base can be cut so, and there are as many cards: vLLM says it in the middle of a start."""
    import torch

    count = settings.tensor_parallel
    config = json.loads((base / "config.json").read_text())
    text = config.get("text_config", config)
    heads = text["num_attention_heads"]
    pairs = text.get("num_key_value_heads", heads)
    tokens = -text["vocab_size"] // VOCABULARY_STEP * -VOCABULARY_STEP
    if heads % count or tokens % count or (pairs % count and count % pairs):  # fewer pairs than parts are repeated
        words = f"the base has {heads} heads, {pairs} of keys and values, and room for {tokens:,} tokens"
        raise UserError(f"--tensor-parallel {count}: {words}; take a number that divides them")
    cores = settings.data_parallel_local or settings.data_parallel
    if not on_cpu() and cores * count > torch.cuda.device_count():
        words = f"{cores} cores of {count} are more than the {torch.cuda.device_count()} cards here"
        raise UserError(f"--data-parallel, --tensor-parallel: {words}; lower them, or use other hosts too")


def on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _environment(kv_cache_gib: float) -> dict[str, str]:
    shared = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CONFIGURE_LOGGING": "0", "VLLM_HOST_IP": "127.0.0.1", **COUNT_NANS}
    if len(os.fsencode(tempfile.gettempdir())) > SOCKET_FOLDER_LENGTH:
        shared["VLLM_RPC_BASE_PATH"] = "/tmp"
    if not on_cpu():
        return shared
    return shared | {
        "OMP_NUM_THREADS": "1",  # on shared cores a second thread that spins costs a factor of twenty
        "TORCHDYNAMO_DISABLE": "1",  # else the first log-probabilities compile for 12 s
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(kv_cache_gib))),  # whole GiB only; on a GPU it is bytes, below
    }


def _arguments(base: Path, dtype: Dtype, settings: EngineNumbers, media: MediaNumbers) -> list[str]:
    arguments: dict[str, object] = {
        "model": base,
        "served-model-name": "base",
        "dtype": dtype,
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_num_seqs,
        # vLLM bounds the media tokens of a prompt by it as well, and a prompt may be all media.
        "max-num-batched-tokens": max(settings.max_num_batched_tokens, settings.max_model_len),
        "block-size": settings.block_size,
        "scheduling-policy": "priority",  # then in the order of arrival; what goes first is in `vllm.URGENT`
        "max-loras": settings.max_loras,
        "max-cpu-loras": max(settings.max_loras, CACHED_ADAPTERS),
        "max-lora-rank": settings.max_lora_rank,
        "data-parallel-size": settings.data_parallel,
        "tensor-parallel-size": settings.tensor_parallel,
        "max-logprobs": settings.top_k,
        "generation-config": "vllm",  # defaults come from the request, never from the checkpoint
        "limit-mm-per-prompt": json.dumps({"image": media.max_images, "video": media.max_videos}),
        "mm-processor-kwargs": json.dumps(_processing(media)),
        "seed": 0,
    }
    if settings.data_parallel_local not in (None, settings.data_parallel):
        arguments |= {
            "data-parallel-size-local": settings.data_parallel_local,
            "data-parallel-address": settings.data_parallel_address,
            "data-parallel-rpc-port": settings.data_parallel_port,
        }
        if settings.data_parallel_start > 0:
            arguments["data-parallel-start-rank"] = settings.data_parallel_start
    flags = ["--enable-lora", "--enable-prefix-caching", "--disable-log-stats", "--disable-uvicorn-access-log"]
    if settings.tensor_parallel > 1:
        flags.append("--mm-encoder-tp-mode=data")  # whole on each card: it is small, and its heads need not divide
    if settings.tool_parser is not None:
        flags += ["--enable-auto-tool-choice", f"--tool-call-parser={settings.tool_parser}"]
    if on_cpu():
        flags.append("--enforce-eager")
        # One process a core starts a third sooner than two. What holds a core with others needs one for each part.
        alone = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
        arguments["distributed-executor-backend"] = alone if settings.tensor_parallel == 1 else "mp"
        arguments["worker-cls"] = "service.engine.cpu_worker.CpuWorker"
    else:
        arguments["kv-cache-memory-bytes"] = int(settings.kv_cache_gib * 2**30)
    named = [f"--{name}={value}" for name, value in arguments.items()]
    return [*named, *flags, "--lora-target-modules", *LORA_MODULES]


def _processing(media: MediaNumbers) -> dict[str, Any]:
    """With the largest image that is ever sent: the engine tries it as it starts, as often as a prompt may have it. Of
    Qwen3-VL's own 16 M pixels that takes minutes on a CPU, and memory on a GPU."""
    images: dict[str, Any] = {**PROCESSING["images_kwargs"]}
    if media.image_max_pixels is not None:
        images["size"] = {"longest_edge": media.image_max_pixels}
    return {**PROCESSING, "images_kwargs": images}

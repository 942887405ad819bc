"""vLLM, and everything of it that moves between its releases: start, render, generate, score, adapters, the CPU kernel.

The rest of the service knows `Engine` and its plain types. What this file relies on, each met as a silent error once:

* An adapter is loaded under a new name, a new number and a new folder for every revision, never in place: the prefix
  cache is keyed by name and folder, and a reused key serves the keys and values of other weights.
* A score reads the prefix cache, but counts only if the cache ended before the completion's first row
  (`num_cached_tokens <= prompt_tokens - 1`). Where it did not, rows are missing or uninitialised, and the sequence is
  scored again without the cache.
* Rows are counted from the end: one runner returns a garbage head where another returns a shorter list.
* On CPU vLLM applies the last adapter's weights to the base's rows of a mixed batch. `CpuLora` replaces that kernel.
* A request whose numbers overflow leaves them in its blocks of the cache; `finite` keeps them from others.
* On CPU seeded requests whose prompts come in pieces kill it. `CpuWorker` mends that.
* When a core dies vLLM ends the others, which give what they have for the whole answer. `cores` makes it an error.
* On CPU a score computes and ranks rows of the whole vocabulary for the prompt as well. `cpu_scores` leaves them out.

vLLM is imported inside functions: its import takes seconds, and reads variables that `arguments` sets first.
"""

import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from adapters.errors import UserError
from adapters.precision import Dtype
from service import logs
from service.chats import for_template
from service.engine.arguments import on_cpu, prepare
from service.engine.cores import Cores, EngineDiedError, fail_given_up, wait_for_coordinator
from service.engine.finite import NotFiniteError, fail_corrupted, zero_new_blocks
from service.engine.headless import end_when_silent, run_cores
from service.media import Video
from service.publishing.registry import AdapterLoadError
from service.settings import EngineNumbers, MediaNumbers

# Added to the logit of a banned token. vLLM takes biases of -100 to 100 only; e**-100 is never sampled.
BAN = -100.0
URGENT = -1
"""The priority of what a publish waits for; everything else has 0. It would wait for all scores that came before it."""
FIRST_ADAPTER_NUMBER = 100_000  # vLLM's own counter starts at 1, and one number must never mean two adapters


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """A revision that the engine has loaded."""

    name: str
    number: int
    folder: Path


@dataclass(frozen=True, slots=True)
class EngineMedia:
    """Decoded media of a prompt with their ids, which stand for them in vLLM's caches."""

    images: tuple[tuple[str, Image], ...] = ()
    videos: tuple[tuple[str, Video], ...] = ()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in (*self.images, *self.videos)]


@dataclass(frozen=True, slots=True)
class EngineScores:
    """Log-probabilities of a completion's tokens [C], and of the likeliest tokens or the requested ids [C, k]."""

    prompt_tokens: int
    logprobs_C: NDArray[np.float32]
    ids_Ck: NDArray[np.int32]
    logprobs_Ck: NDArray[np.float32]
    rescored: bool
    """Whether the prefix cache had swallowed rows, so that a second pass was needed."""

    @property
    def num_bytes(self) -> int:
        return self.logprobs_C.nbytes + self.ids_Ck.nbytes + self.logprobs_Ck.nbytes


@dataclass(frozen=True, slots=True)
class Sampled:
    """A completion; without log-probabilities where they were not asked for."""

    token_ids: tuple[int, ...]
    logprobs_C: NDArray[np.float32]
    ids_Ck: NDArray[np.int32]
    logprobs_Ck: NDArray[np.float32]
    finish_reason: str


class Engine:
    """One frozen base in vLLM."""

    def __init__(self, client: Any, openai: Any, settings: EngineNumbers, dtype: Dtype) -> None:
        self._client: Any = client
        self._cores = Cores(client, settings.data_parallel)
        self.openai: Any = openai
        """vLLM's own application, for its OpenAI-compatible routes."""
        self._requests = itertools.count()
        self._numbers = itertools.count(FIRST_ADAPTER_NUMBER)
        self.settings = settings
        self.dtype: Dtype = dtype
        """What `settings.dtype` is on this machine."""
        self.tokenizer: Any = client.get_tokenizer()
        self.eos_id: int = self.tokenizer.eos_token_id
        config = client.model_config.hf_config
        pads = {kind: getattr(config, f"{kind}_token_id", None) for kind in ("image", "video")}
        self.pads: dict[str, int] = {kind: id for kind, id in pads.items() if id is not None}
        """The pad token of each kind of media; none of a base without vision."""
        self.pad_texts: list[str] = [self.tokenizer.convert_ids_to_tokens(id) for id in self.pads.values()]
        """As they are written in a text, where the tokenizer takes them for the tokens."""
        self.vocabulary_size: int = config.get_text_config().vocab_size
        # The model has more rows than the tokenizer has tokens: such an id could be sampled and never be decoded. Pad
        # tokens in a completion could not be scored afterwards, since the engine would expand them.
        undecodable = range(len(self.tokenizer), self.vocabulary_size)
        banned = {*self.tokenizer.all_special_ids, *self.pads.values(), *undecodable} - {self.eos_id}
        self._banned = dict.fromkeys(sorted(banned), BAN)

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self._banned)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Messages through the base's chat template; one pad token for each image or video."""
        return list(
            self.tokenizer.apply_chat_template(for_template(messages), add_generation_prompt=True, return_dict=False)
        )

    def text_ids(self, text: str) -> list[int]:
        """A text alone, without any mark."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def image_pixels(self) -> tuple[int, int]:
        """The least and the most pixels of an image, by the base's own processor."""
        if not self.pads:
            return 1, 1  # nobody sends any
        size = self._client.renderer.get_mm_processor().info.get_image_processor().size
        return int(size["shortest_edge"]), int(size["longest_edge"])

    # ---- adapters ----

    async def load(self, name: str, folder: Path) -> LoadedAdapter:
        """Every core has it then."""
        adapter = LoadedAdapter(name, next(self._numbers), folder)
        try:
            await self._client.add_lora(_lora_request(adapter))
        except Exception as error:
            # A dead engine fails every call with an error of its own choice, so ask it instead of the error.
            if self.dead:
                raise EngineDiedError from None
            await self._client.remove_lora(adapter.number)  # of the cores that took it
            raise AdapterLoadError(f"{name}: the engine refused it; its log says why") from error
        return adapter

    async def unload(self, handle: object) -> None:
        assert isinstance(handle, LoadedAdapter)
        self._openai_models().pop(handle.name, None)  # first: its routes must not name what is going
        await self._client.remove_lora(handle.number)

    def name_model(self, name: str, adapter: LoadedAdapter | None) -> None:
        """What `model` means in the OpenAI-compatible routes."""
        if adapter is not None:
            self._openai_models()[name] = _lora_request(adapter)

    def _openai_models(self) -> dict[str, Any]:
        return self.openai.state.openai_serving_models.lora_requests

    # ---- sampling and scoring ----

    async def generate(
        self,
        prompt: Sequence[int],
        media: EngineMedia,
        adapter: LoadedAdapter | None,
        *,
        n: int,
        temperature: float,
        top_p: float,
        max_tokens: int | None,
        top_k: int | None,
        seed: int | None,
        stop: Sequence[str],
    ) -> tuple[list[int], list[Sampled]]:
        """The expanded prompt and `n` completions of it, of at most `max_tokens` and what the model has room for.

        `top_k=None`: without log-probabilities, which cost the engine and the way back from it.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        rendered = await self._render(prompt, media)
        room = self.settings.max_model_len - len(rendered["prompt_token_ids"])
        params = SamplingParams(
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            logprobs=top_k,
            seed=seed,
            stop=list(stop) or None,
            stop_token_ids=[self.eos_id],
            logit_bias=self._banned,
            flat_logprobs=True,  # else vLLM makes an object for every position and token
            detokenize=bool(stop),  # stop strings are looked for in the text
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(rendered, params, adapter, self._cores.of(prompt, media.names))
        return list(output.prompt_token_ids), [_sampled(completion) for completion in output.outputs]

    async def score(
        self,
        prompt: Sequence[int],
        media: EngineMedia,
        completion: Sequence[int],
        adapter: LoadedAdapter | None,
        *,
        top_k: int = 0,
        token_ids: Sequence[Sequence[int]] | None = None,
        cached: bool = True,
        core: int | None = None,
        priority: int = 0,
    ) -> EngineScores:
        """Log-probabilities of `completion` after `prompt`; `cached=False` never reads the prefix cache. `core` is
        asked instead of the prompt's own. A lower `priority` goes first."""
        rendered = await self._render([*prompt, *completion], media)
        rendered["cache_salt"] = "scores"  # what was sampled is in the cache to its end, and would be met too far
        prompt_tokens = len(rendered["prompt_token_ids"]) - len(completion)
        cached = cached and prompt_tokens > self.settings.block_size  # a hit could only be one block too far
        core = self._cores.of(prompt, media.names) if core is None else core
        # The row of a token comes from the position before it, so the first row needs position prompt_tokens - 1.
        params = partial(_scoring_params, prompt_tokens - 1, top_k, token_ids)
        output = await self._run(rendered, params(skip_cache=not cached), adapter, core, priority)
        rescored = cached and (output.num_cached_tokens or 0) > prompt_tokens - 1
        if rescored:
            output = await self._run(rendered, params(skip_cache=True), adapter, core, priority)
        assert output.prompt_token_ids[prompt_tokens:] == list(completion), "expansion moved into the completion"
        rows = _last_rows(output.prompt_logprobs, len(completion))
        logprobs_C = _logprobs(rows)
        if not np.isfinite(logprobs_C).all():
            raise NotFiniteError
        if token_ids is not None:
            known = (dict(zip(row.ids, row.logprobs, strict=True)) for row in rows)
            top = [([*ids], [row[id] for id in ids]) for row, ids in zip(known, token_ids, strict=True)]
        else:
            top = [row.likeliest(top_k) for row in rows]
        return EngineScores(prompt_tokens, logprobs_C, *_columns(top), rescored)

    async def _render(self, prompt: Sequence[int], media: EngineMedia) -> Any:
        """vLLM's input with media expanded. Media are known by id, so that a second rendering costs no processing."""
        tokens: dict[str, Any] = {"prompt_token_ids": list(prompt), "multi_modal_data": {}, "multi_modal_uuids": {}}
        if media.images:
            tokens["multi_modal_data"]["image"] = [image for _, image in media.images]
            tokens["multi_modal_uuids"]["image"] = [name for name, _ in media.images]
        if media.videos:
            clips = [(v.frames_THWC, v.metadata() | {"do_sample_frames": False}) for _, v in media.videos]
            tokens["multi_modal_data"]["video"] = clips
            tokens["multi_modal_uuids"]["video"] = [name for name, _ in media.videos]
        room = self.settings.max_model_len - 1  # vLLM always samples one token more, even when it only scores
        message = f"the prompt with its media and the completion do not fit into the model's {room} tokens"
        try:
            (rendered,) = await self._client.renderer.render_cmpl_async([tokens])
        except ValueError as error:  # vLLM's word for what is too long before or after expansion
            raise UserError(message) from error
        if len(rendered["prompt_token_ids"]) > room:
            raise UserError(message)
        return rendered

    async def _run(
        self, rendered: Any, params: Any, adapter: LoadedAdapter | None, core: int, priority: int = 0
    ) -> Any:
        """The finished output; cancelling the caller aborts the request."""
        request = _lora_request(adapter) if adapter else None
        name = f"coevo-{next(self._requests)}"
        try:
            answer = self._client.generate(
                rendered, params, name, lora_request=request, priority=priority, data_parallel_rank=core
            )
            outputs = [output async for output in answer]
        except Exception:
            if self.dead:
                raise EngineDiedError from None
            raise
        return outputs[-1]

    # ---- health ----

    def drop(self) -> None:
        """Forget vLLM's client, which else ends itself while the interpreter shuts down."""
        self._client = self.openai = None
        del self._cores

    async def ping(self) -> None:
        """Answered by every core between two of its steps."""
        await self._cores.ping()

    @property
    def silent(self) -> str:
        """The cores that owe the answer to a ping, in words after "the engine"."""
        return self._cores.silent

    @property
    def computed_s(self) -> float:
        """Seconds of the processor that the core took which owes the answer to a ping. On a GPU it says nothing: there
        a core that waits for ever may compute all the while."""
        return self._cores.computed_s if on_cpu() else 0.0

    @property
    def dead(self) -> str | None:
        """What has died, in words."""
        return self._cores.dead

    @property
    def version(self) -> str:
        from vllm import __version__

        return __version__


def _lora_request(adapter: LoadedAdapter) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(adapter.name, adapter.number, str(adapter.folder))


def _scoring_params(first_row: int, top_k: int, token_ids: Sequence[Sequence[int]] | None, *, skip_cache: bool) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    if on_cpu():
        from service.engine.cpu_scores import score_args

        width, extra_args = len(token_ids[0]) if token_ids else top_k, score_args(first_row, token_ids)
    else:
        # vLLM's own runner cannot be asked for single ids here, only for whole rows.
        width, extra_args = -1 if token_ids is not None else top_k, None
    return SamplingParams(
        output_kind=RequestOutputKind.FINAL_ONLY,
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=width,
        extra_args=extra_args,
        flat_logprobs=True,
        detokenize=False,
        skip_reading_prefix_cache=skip_cache,
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One position as vLLM gives it: the actual token first, then the likeliest."""

    ids: list[int]
    logprobs: list[float]

    def likeliest(self, count: int) -> tuple[list[int], list[float]]:
        return self.ids[1 : 1 + count], self.logprobs[1 : 1 + count]


def _last_rows(flat: Any, count: int) -> list[_Row]:
    bounds = zip(flat.start_indices[-count:], flat.end_indices[-count:], strict=True)
    return [_Row(flat.token_ids[start:end], flat.logprobs[start:end]) for start, end in bounds]


def _logprobs(rows: Sequence[_Row]) -> NDArray[np.float32]:
    return np.array([row.logprobs[0] for row in rows], np.float32)


def _columns(top: Sequence[tuple[list[int], list[float]]]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return np.array([ids for ids, _ in top], np.int32), np.array([values for _, values in top], np.float32)


def _sampled(completion: Any) -> Sampled:
    rows = _last_rows(completion.logprobs, len(completion.token_ids)) if completion.logprobs is not None else []
    top = [row.likeliest(len(row.ids) - 1) for row in rows]
    return Sampled(tuple(completion.token_ids), _logprobs(rows), *_columns(top), str(completion.finish_reason))


# ---- starting ----


@asynccontextmanager
async def start_engine(base: Path, settings: EngineNumbers, media: MediaNumbers) -> AsyncGenerator[Engine]:
    """The engine, in processes of its own that end with the block."""
    args, dtype = prepare(base, settings, media)
    wait_for_coordinator()
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.entrypoints.launchers.app import build_app

    async with build_async_engine_client(args) as client:
        tasks = await client.get_supported_tasks()
        app: Any = build_app(args, tasks, client.model_config)
        await init_app_state(client, app.state, args, tasks)
        app.state.server = SimpleNamespace(should_exit=False)  # its handlers of a dead engine set this
        fail_corrupted(client)
        fail_given_up(client)
        engine = Engine(client, app, settings, dtype)
        try:
            yield engine
        finally:
            engine.drop()


def serve_cores(base: Path, settings: EngineNumbers, media: MediaNumbers, silent_s: float) -> None:
    """Cores for the service of another host, until one of them ends or hears nothing for so long."""
    args, _ = prepare(base, settings, media)
    run_cores(args, silent_s)


# ---- in vLLM's processes ----


def prepare_process() -> None:
    """vLLM calls this in each of its processes (entry point `vllm.general_plugins`)."""
    logs.set_up()
    from vllm.platforms import current_platform

    zero_new_blocks()
    end_when_silent()
    if not current_platform.is_cpu():
        return
    platform: Any = type(current_platform)
    platform.get_punica_wrapper = classmethod(lambda cls: "service.engine.cpu_lora.CpuLora")
    import torch

    from service.engine.cpu_scores import score_completions_alone

    score_completions_alone()

    # Linux grants AMX's tiles only to processes that ask, and vLLM's attention uses them unasked. oneDNN asks before
    # its first large product, so without this the engine dies of an illegal instruction if the first prompt is short.
    cpu: Any = torch.cpu
    if cpu._is_amx_tile_supported():
        cpu._init_amx()

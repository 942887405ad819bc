"""What a service is started with: flags before `COEVO_...` variables before a recipe's numbers before the defaults.

Secrets come from the environment only, because every user of a machine can read the flags of its processes. A wrong
value is told in one line that names where it came from.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from adapters.errors import UserError

PREFIX = "COEVO_"
SECRETS = frozenset({"api_key", "redis_url"})

_KEY = re.compile(r"[\x21-\x7e]+")


class SettingsError(UserError):
    """A flag or a variable that cannot be used."""


def _check_key(value: SecretStr) -> SecretStr:
    if not _KEY.fullmatch(value.get_secret_value()):
        raise ValueError("take visible ASCII characters without blanks, it travels in a header")
    return value


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)


class EngineNumbers(_Frozen):
    """What the engine may hold."""

    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """The type of the base and of the served copies of the adapters; auto is bfloat16 where the processor has it."""
    max_model_len: int = Field(default=2048, ge=2)
    """Tokens of a prompt, expanded, and its completion together, plus one."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences decoded together."""
    max_num_batched_tokens: int = Field(default=4096, ge=256)
    """Tokens in one engine step."""
    block_size: int = Field(default=32, ge=1)
    """Tokens in one block of the KV cache."""
    kv_cache_gib: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """KV cache in GiB, a fixed amount."""
    max_loras: int = Field(default=8, ge=2)
    """Adapter slots on the device."""
    max_lora_rank: int = Field(default=64, ge=1, le=512)
    """The largest rank that can be served."""
    top_k: int = Field(default=20, ge=1)
    """The most likeliest tokens that a request may ask for."""
    data_parallel: int = Field(default=1, ge=1)
    """Engine cores on cards of their own, each with the base and all adapters; prompts are spread over them."""
    data_parallel_local: int | None = Field(default=None, ge=1)
    """Engine cores on this host; left out, all of them."""
    data_parallel_start: int = Field(default=0, ge=0)
    """This host's first engine core. Above 0 it has no service: its cores work for that of data_parallel_address."""
    data_parallel_address: str = ""
    """Address of the host of core 0, where the service is; only with cores on several hosts."""
    data_parallel_port: int = Field(default=13345, ge=1, le=65535)
    """Port there to which the other hosts' cores come. It asks for no key: let nobody else reach it."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Cards that hold one engine core together."""
    tool_parser: Literal["hermes"] | None = None
    """How the base writes calls of tools, which chats may name then; hermes is Qwen's way."""


class MediaNumbers(_Frozen):
    """What pixels the engine sees. Left out, the bounds are those of the base's own processor."""

    max_images: int = Field(default=8, ge=0)
    """Images in one prompt."""
    max_videos: int = Field(default=1, ge=0)
    """Videos in one prompt."""
    image_min_pixels: int | None = Field(default=None, ge=1)
    """A smaller image is scaled up to this."""
    image_max_pixels: int | None = Field(default=None, ge=1)
    """A larger image is scaled down to this."""
    video_min_pixels: int | None = Field(default=None, ge=1)
    """A smaller frame is scaled up to this."""
    video_max_pixels: int | None = Field(default=None, ge=1)
    """A larger frame is scaled down to this."""
    fps: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Frames taken from a second of video."""
    min_frames: int = Field(default=4, ge=2)
    """Frames of one video; a shorter one is sampled more densely."""
    max_frames: int = Field(default=128, ge=2)
    """Frames of one video; a longer one is sampled more thinly."""


class Settings(_Frozen):
    """The service around the engine."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 is any free one."""
    base: str = "miniature"
    """`miniature`, a folder, or a name on the Hugging Face hub."""
    store: Path = Path("store")
    """Folder of the published revisions; one base's, one service's."""
    runs: Path = Path("runs")
    """Folder of what runs tell: their events, and every step's rollouts."""
    adapter_cache: Path = Path("/dev/shm")
    """Where the served copies of the adapters lie, in a folder of the service's own."""
    extra: str = ""
    """Adapters of folders beside the store's, answered by these names: `merged=DIR,other=DIR`."""
    body_bytes: int = Field(default=512 * 2**20, ge=1)
    """The largest body of a request but an upload."""
    bodies_bytes: int = Field(default=2**30, ge=1)
    """All such bodies in memory together; one more is answered 429."""
    head_bytes: int = Field(default=2**16, ge=1024)
    """The largest head of a request: its path and its headers."""
    upload_bytes: int = Field(default=16 * 2**30, ge=1)
    """The largest body of a published revision."""
    max_adapter_value: float = Field(default=1000.0, gt=0, allow_inf_nan=False)
    """The largest weight of an adapter, so that nothing overflows; training stays a hundred times below."""
    max_adapter_change: float = Field(default=1000.0, gt=0, allow_inf_nan=False)
    """The largest scale * max|A| * max|B| of an adapter, for the same reason."""
    record_bytes: int = Field(default=4 * 2**30, ge=1)
    """The largest record of a step's rollouts."""
    media_bytes: int = Field(default=8 * 2**30, ge=1)
    """All uploaded images and videos together; the least recently used go."""
    max_requests: int = Field(default=256, ge=1)
    """Requests in the engine at a time."""
    max_tokens: int = Field(default=1_000_000, ge=1)
    """Their tokens, estimated; a larger request runs alone."""
    max_waiting: int = Field(default=1024, ge=0)
    """Requests that may wait for them; one more is answered 429."""
    max_wait_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """How long one waits before it is answered 429."""
    request_timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """How long the engine may take for one request."""
    send_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """How long a caller may not read on while its answer is sent, before it is cut off."""
    max_closed_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """How long nobody may be let in and nothing finish, before /readyz says so."""
    scores_bytes: int = Field(default=256 * 2**20, ge=0)
    """Scores that are remembered, together."""
    pixels_bytes: int = Field(default=2**30, ge=0)
    """Decoded images and videos that are remembered, together."""
    decoders: int = Field(default=4, ge=1)
    """Images and videos that are decoded at a time; each may take a gigabyte while it lasts."""
    allowed_hosts: str = ""
    """Names it may be asked by, `NAME,NAME`; without a key and on this machine alone, the default is this machine's."""
    frozen_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """How long nothing may come out of an engine that was asked, before it is started again. On a CPU it may compute:
    then a step takes longer."""
    api_key: Annotated[SecretStr, AfterValidator(_check_key)] | None = None
    """Asked for on every route but /healthz."""
    redis_url: SecretStr | None = None
    """The queue; without one, publishes are fenced in this process. Holds a password."""
    engine: EngineNumbers = EngineNumbers()
    media: MediaNumbers = MediaNumbers()


SECTIONS: Mapping[str, type[BaseModel]] = {"engine": EngineNumbers, "media": MediaNumbers}
"""Settings of settings: their names are flags and variables like all others, without the section's name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting that is no secret. A default of None tells a flag that was not given."""
    for name, field in _fields():
        if name not in SECRETS:
            default = field.get_default()
            help = f"{(field.description or '').replace('%', '%%')} [{default}]"
            parser.add_argument(_flag(name), metavar=name.rpartition("_")[2].upper(), help=help)


def read(flags: Mapping[str, Any], environ: Mapping[str, str], recipe: Mapping[str, Any] | None = None) -> Settings:
    """`flags` as argparse has them and `recipe` by the names of the settings; others in `flags` are ignored."""
    given: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, _ in _fields():
        for origin, value in (
            (_flag(name), flags.get(name) if name not in SECRETS else None),
            (_variable(name), environ.get(_variable(name)) or None),  # set to nothing is not set: compose does that
            (f"recipe: {name}", (recipe or {}).get(name)),
        ):
            if value is not None:
                given[name], origins[name] = value, origin
                break
    sections = {
        section: {name: given.pop(name) for name in model.model_fields if name in given}
        for section, model in SECTIONS.items()
    }
    try:
        settings = Settings(**given, **cast(Any, sections))
    except ValidationError as error:
        # Without the input, which may be a secret.
        lines: list[str] = []
        for item in error.errors(include_url=False, include_input=False):
            name = next(str(part) for part in item["loc"] if part not in SECTIONS)
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{origins[name]}: {message[:1].lower()}{message[1:]}")
        raise SettingsError("; ".join(lines)) from None
    _check_hosts(settings)
    return settings


def _check_hosts(settings: Settings) -> None:
    """Engine cores on several hosts, which know each other by these settings alone."""
    engine = settings.engine
    first, local, total = engine.data_parallel_start, engine.data_parallel_local, engine.data_parallel
    if local is None:
        if first > 0:
            raise SettingsError(f"--data-parallel-start {first}: say with --data-parallel-local how many are here")
        return
    if first + local > total:
        last = first + local - 1
        raise SettingsError(f"--data-parallel-local {local}: cores {first} to {last} of 0 to {total - 1}; lower it")
    if local == total:
        return
    if not engine.data_parallel_address:
        raise SettingsError("--data-parallel-address: set it to the address of core 0's host, on all hosts")
    if first == 0 and settings.adapter_cache.is_relative_to("/dev/shm"):
        raise SettingsError(
            f"--adapter-cache {settings.adapter_cache}: it is this host's alone, and cores on others read adapters "
            "there too; name a folder that all hosts share"
        )


def _fields() -> Iterator[tuple[str, FieldInfo]]:
    yield from ((name, field) for name, field in Settings.model_fields.items() if name not in SECTIONS)
    for section in SECTIONS.values():
        yield from section.model_fields.items()


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"

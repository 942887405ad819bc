"""What an adapter must be before anything loads it, with all its problems at once.

The engine says nothing about an adapter with a wrong prefix or keys of the vision tower: it ignores what it does not
know and serves the rest. So every key is looked at here, with its shape. Keys decide, not `target_modules`, which PEFT
writes as names, as a pattern, or with names of modules that it then left out. A projection without keys has no change.

Masters are float32, nothing else: an update of a small learning rate rounds to nothing in 16 bits, and a publisher that
has only those converts them knowingly. An adapter that is only merged may have 16 bits.

Left out: files as bytes (`tensor_files`), and whether the adapter computes what its publisher thinks (the canary of
`service.publishing.publisher`).
"""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast

from safetensors import safe_open

from adapters.architectures import Architecture, read_architecture
from adapters.errors import UserError
from adapters.manifest import ADAPTER_FILES, CONFIG, OPTIMISER, WEIGHTS
from adapters.names import shown
from adapters.tensor_files import HEADER_BYTES, MASTERS, Shape, header_problem, maxima

CONFIG_BYTES = 2**20
"""The largest config that is read. PEFT's own has 1 kB, and nothing larger is parsed."""
_IN_FLOAT32 = f"convert them: save_file({{k: v.float() for k, v in load_file(f).items()}}, f), f = '{WEIGHTS}'"
"""With both functions of safetensors.torch."""
_NAMED = 2
"""Tensors or settings with one problem that are named; the rest is counted, for a wrong prefix is wrong 500 times."""

PREFIX = "base_model.model."
"""What PEFT writes before a module's name in an adapter's keys."""
_PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
TARGETS: frozenset[str] = frozenset(name for names in _PROJECTIONS.values() for name in names)

# PEFT's settings that change nothing here. Every other one must be empty, those of later versions too: a LoRA with a
# setting that is not understood would be served as a plain one, and compute something else than it was trained to.
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",  # this one and the two of layers say where there are keys, and the keys are here
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
# None: not set. PiSSA, OLoRA and their like change the base as they are loaded.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_rslora": (False, True, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
_CHECKED = frozenset({*_ALLOWED, "r", "lora_alpha", "target_modules"})
_REMEDIES = {
    "rank_pattern": "train with a single r, or pad A and B with zeros to a common rank",
    "alpha_pattern": "train with a single lora_alpha, or multiply the Bs by what theirs is larger",
    "init_lora_weights": "save it with PEFT's path_initial_model_for_weight_conversion",
    "bias": "train with bias='none'",
}
"""How a setting becomes servable. For every other one: train without it."""


@dataclass(frozen=True, slots=True)
class WeightBounds:
    """How large weights may be, so that nothing that is computed with them overflows.

    Training stays far below: A begins at 1 / sqrt(inputs), B at 0, and in a step Adam moves a weight by the learning
    rate at most. 10,000 steps at 1e-3 make 10. At the bounds a layer adds some 1e25 to what it is given, and float32
    and bfloat16 hold 3e38.
    """

    value: float = 1000.0
    """Of a weight of A or B."""
    change: float = 1000.0
    """max|B| * max|A| * scale: how much each rank may change a weight of the base."""


BOUNDS = WeightBounds()


class InvalidAdapterError(UserError):
    """Everything that is wrong with an upload."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"no adapter of this base: {'; '.join(self.problems)}")


@dataclass(frozen=True, slots=True)
class BaseShape:
    """The language model's sizes, as far as adapters depend on them."""

    architecture: Architecture
    num_layers: int
    projections: Mapping[str, tuple[int, int]]
    """Inputs and outputs of `self_attn.q_proj` and the other six."""

    @property
    def prefix(self) -> str:
        """What the keys of an adapter begin with, up to the layer's number."""
        return f"{PREFIX}{self.architecture.layers}"

    def shapes(self, rank: int) -> dict[str, Shape]:
        """The shape of every tensor of an adapter, by its key."""
        shapes: dict[str, Shape] = {}
        for layer in range(self.num_layers):
            for name, (num_inputs, num_outputs) in self.projections.items():
                shapes[f"{self.prefix}{layer}.{name}.lora_A.weight"] = (rank, num_inputs)
                shapes[f"{self.prefix}{layer}.{name}.lora_B.weight"] = (num_outputs, rank)
        return shapes


@dataclass(frozen=True, slots=True)
class Adapter:
    """What a valid adapter says of itself."""

    rank: int
    alpha: float
    is_rank_stabilised: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.is_rank_stabilised else self.rank)


def base_shape(folder: Path) -> BaseShape:
    """The sizes of a checkpoint's language model, from its config.json."""
    architecture = read_architecture(folder)
    config = cast(dict[str, Any], json.loads((folder / "config.json").read_text()))
    text = cast(dict[str, Any], config["text_config"] if architecture.has_vision else config)
    hidden, inner, heads = int(text["hidden_size"]), int(text["intermediate_size"]), int(text["num_attention_heads"])
    head = int(text.get("head_dim") or hidden // heads)  # where it is given, it need not be hidden / heads
    values = int(text.get("num_key_value_heads") or heads) * head
    sizes = {
        "q_proj": (hidden, heads * head),
        "k_proj": (hidden, values),
        "v_proj": (hidden, values),
        "o_proj": (heads * head, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    projections = {f"{part}.{name}": sizes[name] for part, names in _PROJECTIONS.items() for name in names}
    return BaseShape(architecture, int(text["num_hidden_layers"]), projections)


def upload_limits(base: BaseShape, max_rank: int) -> dict[str, int]:
    """The files that an upload may have, and the most bytes of each: two moments for each weight, and headers."""
    weights = 4 * sum(math.prod(shape) for shape in base.shapes(max_rank).values())
    return {CONFIG: CONFIG_BYTES, WEIGHTS: weights + HEADER_BYTES, OPTIMISER: 2 * weights + HEADER_BYTES}


def check_adapter(
    folder: Path, base: BaseShape, max_rank: int, bounds: WeightBounds = BOUNDS, dtypes: Collection[str] = MASTERS
) -> Adapter:
    """The adapter in a folder, read to the last value. InvalidAdapterError if it is none of this base."""
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise InvalidAdapterError(f"{name}: missing" for name in missing)
    adapter, problems = _check_config(folder / CONFIG, max_rank)
    problems += _check_weights(folder / WEIGHTS, base, adapter, bounds, dtypes)
    moments = folder / OPTIMISER
    if moments.is_file():  # their names and shapes are the trainer's; only that they can be continued from is checked
        problem = header_problem(moments)
        problems += _value_problems(moments, maxima(moments)) if problem is None else [problem]
    if problems:
        raise InvalidAdapterError(problems)
    assert adapter is not None
    return adapter


def _check_config(path: Path, max_rank: int) -> tuple[Adapter | None, list[str]]:
    """What the config says, where it says enough to compare tensors with."""
    try:
        config = json.loads(path.read_bytes()) if path.stat().st_size <= CONFIG_BYTES else None
    except (ValueError, RecursionError):  # deep nesting is no error of JSON's, but one of its reader
        config = None
    if not isinstance(config, dict):
        return None, [f"{CONFIG}: no JSON object of at most {CONFIG_BYTES} bytes"]
    settings = cast(dict[str, Any], config)
    by_remedy: dict[str, list[str]] = {}
    for key, value in settings.items():
        if value and key not in _CHECKED | _HARMLESS:
            by_remedy.setdefault(_remedy(key), []).append(key)
    problems = [*_kind_problems(settings)]
    for remedy, foreign in by_remedy.items():
        problems += _alike(CONFIG, map(shown, foreign), f"no part of a plain LoRA; {remedy}")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not _is_number(alpha) or not 0 < alpha < 1e6:
        problems.append(f"{CONFIG}: lora_alpha is {_value(alpha)}, not a number above 0")
        alpha = 1.0  # any: the shapes are compared all the same, so that one refusal names all problems
    if not _is_number(rank) or not isinstance(rank, int) or rank < 1:
        return None, [*problems, f"{CONFIG}: r is {_value(rank)}, not a whole number from 1"]
    if rank > max_rank:
        remedy = "serve with a larger --max-lora-rank"
        return None, [*problems, f"{CONFIG}: r is {_value(rank)}, the engine's limit is {max_rank}; {remedy}"]
    return Adapter(rank, alpha, settings.get("use_rslora") is True), problems


def _kind_problems(settings: dict[str, Any]) -> Iterator[str]:
    for key, allowed in _ALLOWED.items():
        value = settings.get(key)
        # By identity, as 1 == True: a 1 would pass here, and nothing after this would take it for true.
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
            yield f"{CONFIG}: {key} is {_value(value)}, not {' or '.join(map(_value, allowed))}; {_remedy(key)}"
    targets: Any = settings.get("target_modules")
    names = cast(list[Any], targets if isinstance(targets, list) else [targets])
    if not all(isinstance(name, str) for name in names):  # what they say is not asked, but the engine reads them
        yield f"{CONFIG}: target_modules is {_value(targets)}; write names of modules, or a pattern"


def _remedy(key: str) -> str:
    return _REMEDIES.get(key, "train without it")


def _check_weights(
    path: Path, base: BaseShape, adapter: Adapter | None, bounds: WeightBounds, dtypes: Collection[str]
) -> list[str]:
    if (problem := header_problem(path)) is not None:
        return [problem]
    with safe_open(path, framework="numpy") as file:
        slices = {key: file.get_slice(key) for key in sorted(file.keys())}
        dtype_of = {key: str(part.get_dtype()) for key, part in slices.items()}
        shapes: dict[str, Shape] = {key: tuple(part.get_shape()) for key, part in slices.items()}
    problems = [*_key_problems(shapes.keys(), base)]
    for dtype in sorted(set(dtype_of.values()) - set(dtypes)):
        keys = [key for key in shapes if dtype_of[key] == dtype]
        problems += _alike(WEIGHTS, map(shown, keys), f"{dtype}, and not {' or '.join(sorted(dtypes))}; {_IN_FLOAT32}")
    if adapter is not None:
        expected = base.shapes(adapter.rank)
        wrong = {key: shape for key, shape in shapes.items() if expected.get(key, shape) != shape}
        texts = (f"{shown(key)} of {list(shape)} for {list(expected[key])}" for key, shape in wrong.items())
        problems += _alike(WEIGHTS, texts, f"of another shape than r = {adapter.rank} and the base give")
    largest = maxima(path, dtypes)
    problems += _value_problems(path, largest, bounds.value)
    return problems if problems or adapter is None else [*_change_problems(largest, adapter.scale, bounds.change)]


def _key_problems(keys: Collection[str], base: BaseShape) -> Iterator[str]:
    known = base.shapes(1).keys()  # the keys are the same for every rank
    seven = ", ".join(sorted(TARGETS))
    if not known & set(keys):
        yield f"{WEIGHTS}: no LoRA of a projection in it; train with target_modules of {seven}"
    # A without B is no change of zero but a file that lost something.
    pairs = {f"{key.rsplit('.lora_', 1)[0]}.lora_{half}.weight" for key in known & set(keys) for half in "AB"}
    lost = sorted(pairs - set(keys))
    yield from _alike(WEIGHTS, map(shown, lost), "missing, though the other half is there; save the adapter again")
    by_reason: dict[str, list[str]] = {}
    for key in sorted(set(keys) - known):
        by_reason.setdefault(_why_not(key, base), []).append(key)
    for reason, extra in by_reason.items():
        yield from _alike(WEIGHTS, map(shown, extra), reason)


def _why_not(key: str, base: BaseShape) -> str:
    """What a key is that no projection has, and how its adapter becomes servable."""
    if "visual" in key:
        return "of the vision tower, which is frozen; train with exclude_modules='.*visual.*'"
    if key.startswith(base.prefix):
        return f"no projection of this base; train {', '.join(sorted(TARGETS))} of {base.num_layers} layers only"
    if "lm_head" in key or "embed_tokens" in key:
        return "outside the layers; train without it"
    return f"not below {base.prefix}; rename the keys"


def _value_problems(path: Path, largest: Mapping[str, float], bound: float = math.inf) -> Iterator[str]:
    infinite = (shown(key) for key, value in largest.items() if not math.isfinite(value))
    yield from _alike(path.name, infinite, "with values that are not finite")
    large = (f"{shown(key)} with {value:.3g}" for key, value in largest.items() if bound < value < math.inf)
    yield from _alike(
        path.name,
        large,
        f"at most {bound:g} is taken (10,000 steps at a learning rate of 1e-3 make 10); train with a smaller learning "
        "rate, or serve with a larger --max-adapter-value",
    )


def _change_problems(largest: Mapping[str, float], scale: float, bound: float) -> Iterator[str]:
    changes = {
        key: scale * value * largest[key.replace(".lora_A.", ".lora_B.")]
        for key, value in largest.items()
        if ".lora_A." in key
    }
    yield from _alike(
        WEIGHTS,
        (f"{shown(key)} with {change:.3g}" for key, change in changes.items() if change > bound),
        f"a change of the base's weights (scale * max|A| * max|B|) of which at most {bound:g} is taken; train with a "
        "smaller lora_alpha, or serve with a larger --max-adapter-change",
    )


def _alike(file: str, names: Iterable[str], problem: str) -> Iterator[str]:
    """A problem of many, with its remedy said once: the first are named, the rest counted."""
    listed = list(names)
    if listed:
        rest = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        yield f"{file}: {', '.join(listed[:_NAMED])}{rest}: {problem}"


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)  # a bool is an int in Python


def _value(value: object) -> str:
    return shown(json.dumps(value))[1:-1]

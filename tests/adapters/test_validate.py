"""What an adapter must be: PEFT's own is valid, and every other shape, setting and file is named."""

import json
import math
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import CONFIG, OPTIMISER, WEIGHTS
from adapters.tensor_files import HALVES, MASTERS, header_problem, served_copy
from adapters.validate import (
    Adapter,
    InvalidAdapterError,
    WeightBounds,
    base_shape,
    check_adapter,
    upload_limits,
)
from tests.adapters.peft_files import PARTIAL, save_by_peft

BASE = base_shape(locate("miniature"))
FIRST = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"


def problems_of(folder, max_rank=8):
    with pytest.raises(InvalidAdapterError) as error:
        check_adapter(folder, BASE, max_rank)
    assert "\n" not in str(error.value)
    assert str(error.value).isascii()
    assert len(str(error.value)) < 5000
    return error.value.problems


def one_problem(folder, max_rank=8):
    problems = problems_of(folder, max_rank)
    assert len(problems) == 1, problems
    return problems[0]


def configure(folder: Path, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def change_weights(folder: Path, change):
    """`change` maps the tensors to others."""
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights), folder / WEIGHTS)


def renamed(old, new):
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


def test_what_peft_saves_is_valid(adapter):
    assert check_adapter(adapter, BASE, 8) == Adapter(rank=8, alpha=16)
    assert check_adapter(adapter, BASE, 8).scale == 2
    with safe_open(adapter / WEIGHTS, framework="numpy") as file:
        assert set(file.keys()) == set(BASE.shapes(8))


@pytest.mark.parametrize("kind", PARTIAL)
def test_what_peft_saves_with_fewer_modules_is_valid(tmp_path, kind):
    folder = save_by_peft(tmp_path / kind, **PARTIAL[kind])
    assert check_adapter(folder, BASE, 8) == Adapter(rank=8, alpha=16)


@pytest.mark.parametrize("targets", ["all-linear", ["v_proj", "q_proj"], ["nothing.of.this"], ".*"])
def test_keys_decide_and_not_target_modules(adapter, targets):
    configure(adapter, target_modules=targets)
    assert check_adapter(adapter, BASE, 8).rank == 8


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT has doubts of its own about these
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_modules": "all-linear"}, "vision tower, which is frozen; train with exclude_modules='.*visual.*'"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "'use_dora': no part of a plain LoRA; train"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "lm_head.weight': outside the layers"),
        ({"target_modules": ["q_proj"], "bias": "all"}, "train with bias='none'"),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}}, "pad A and B with zeros"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.lora_A.weight' and 1 more: outside the layers"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "embed_tokens"),
    ],
)
def test_what_peft_saves_and_cannot_be_served_is_told_with_a_remedy(tmp_path, settings, says):
    folder = save_by_peft(tmp_path / "adapter", **settings)
    assert says in "; ".join(problems_of(folder))


def test_rank_stabilised_scaling_is_understood(adapter):
    configure(adapter, use_rslora=True)
    assert check_adapter(adapter, BASE, 8).scale == pytest.approx(16 / 8**0.5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type is"),
        ({"peft_type": None}, "peft_type is null"),
        ({"bias": "all"}, "bias is"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is"),
        ({"init_lora_weights": ["gaussian"]}, "init_lora_weights is"),
        ({"use_dora": True}, "'use_dora': no part of a plain LoRA; "),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save': no part of a plain LoRA; "),
        ({"rank_pattern": {"q_proj": 4}}, "'rank_pattern': no part of a plain LoRA; "),
        ({"alpha_pattern": {"q_proj": 4}}, "'alpha_pattern': no part of a plain LoRA; "),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out': no part of a plain LoRA; "),
        ({"lora_bias": True}, "'lora_bias': no part of a plain LoRA; "),
        ({"a_later_invention": "on"}, "'a_later_invention': no part of a plain LoRA; "),
        ({"target_modules": None}, "target_modules is null; write names of modules, or a pattern"),
        ({"target_modules": ["q_proj", {}]}, "target_modules is"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": "16"}, "lora_alpha is"),
        ({"lora_alpha": float("nan")}, "lora_alpha is NaN"),
        ({"r": 0}, "r is 0"),
        ({"r": 8.0}, "r is 8.0"),
        ({"r": True}, "r is true"),
        ({"r": 16}, "r is 16, the engine's limit is 8; serve with a larger --max-lora-rank"),
        ({"r": 10**4000}, "the engine's limit is 8"),
    ],
)
def test_each_setting_that_is_no_plain_lora_is_named(adapter, changes, says):
    configure(adapter, **changes)
    assert says in one_problem(adapter)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": "' + "x" * 2**20 + '"}', "\ud800"])
def test_a_config_that_is_no_object_is_told(adapter, text):
    (adapter / CONFIG).write_bytes(text.encode(errors="surrogatepass"))
    assert one_problem(adapter).startswith(f"{CONFIG}: no JSON object")


def test_a_rank_above_the_engines_is_told(adapter):
    assert "r is 8, the engine's limit is 4" in one_problem(adapter, max_rank=4)


def test_another_rank_than_the_config_says_is_a_wrong_shape(adapter):
    configure(adapter, r=4)
    problems = problems_of(adapter)
    assert problems[0].startswith(f"{WEIGHTS}: 'base_model")
    assert "' of [8, 384] for [4, 384], '" in problems[0]
    assert problems[0].endswith(" and 54 more: of another shape than r = 4 and the base give")


def with_tensor(key, tensor):
    return lambda weights: weights | {key: tensor.astype("f4") if tensor.dtype == "f8" else tensor}


def without(part):
    return lambda weights: {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (renamed("language_model.layers", "layers"), f"not below {FIRST[:45]}"),
        (renamed("base_model.model.model", "model"), "not below"),
        (renamed("lora_A.weight", "lora_A.default.weight"), "no projection of this base"),
        (renamed("layers.3", "layers.4"), "no projection of this base"),
        (
            with_tensor("base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight", np.zeros((8, 96))),
            "vision tower",
        ),
        (with_tensor("base_model.model.lm_head.lora_A.weight", np.zeros((8, 192))), "outside the layers"),
        (with_tensor(FIRST.replace("lora_A.weight", "lora_magnitude_vector"), np.zeros(8)), "no projection"),
        (without(FIRST), f"{FIRST}': missing, though the other half is there"),
        (without("lora_B"), " and 26 more: missing, though the other half is there; save the adapter again"),
        (with_tensor(FIRST, np.zeros((192, 8))), "of [192, 8] for [8, 192]: of another shape"),
        (with_tensor(FIRST, np.zeros((8, 192), "f2")), "F16, and not F32; convert them"),
        (with_tensor(FIRST, np.full((8, 192), np.nan)), "not finite"),
        (with_tensor(FIRST, np.full((8, 192), -np.inf)), "not finite"),
        (without(""), "no LoRA of a projection in it"),
    ],
)
def test_each_tensor_that_the_engine_would_ignore_or_choke_on_is_named(adapter, change, says):
    change_weights(adapter, change)
    assert any(says in problem for problem in problems_of(adapter))


def test_bfloat16_masters_are_refused(adapter):
    weights = {key: value.bfloat16() for key, value in load_torch(adapter / WEIGHTS).items()}
    save_torch(weights, adapter / WEIGHTS)
    problems = problems_of(adapter)
    assert "and 54 more: BF16, and not F32; convert them: save_file(" in problems[0]
    assert len(problems) == 1
    # The remedy is carried out as it is printed.
    f = str(adapter / WEIGHTS)
    remedy = problems[0].partition("convert them: ")[2].partition(", f = ")[0]
    exec(remedy, {"f": f, "load_file": load_torch, "save_file": save_torch})
    assert check_adapter(adapter, BASE, 8).rank == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merge_takes_16_bits_but_no_infinite_value(adapter, dtype):
    weights = {key: torch.from_numpy(value).to(dtype) for key, value in load_file(adapter / WEIGHTS).items()}
    save_torch(weights, adapter / WEIGHTS)
    assert check_adapter(adapter, BASE, 8, dtypes=MASTERS | HALVES) == Adapter(rank=8, alpha=16)
    save_torch(weights | {FIRST: torch.full_like(weights[FIRST], math.inf)}, adapter / WEIGHTS)
    with pytest.raises(InvalidAdapterError, match=f"{FIRST}': with values that are not finite"):
        check_adapter(adapter, BASE, 8, dtypes=MASTERS | HALVES)


def test_a_remedy_is_said_once(adapter):
    configure(adapter, use_dora=True, lora_bias=True, fan_in_fan_out=True, rank_pattern={"q_proj": 4})
    change_weights(adapter, renamed("language_model.layers", "layers"))
    text = "; ".join(problems_of(adapter))
    assert " and 1 more: no part of a plain LoRA; train without it" in text
    for remedy in ("train without it", "train with a single r", "rename the keys"):
        assert text.count(remedy) == 1


def test_all_problems_are_listed_at_once(adapter):
    configure(adapter, use_dora=True, bias="all", lora_alpha=-1)
    change_weights(
        adapter, lambda weights: renamed("layers.0", "visual.0")(weights) | {"odd": np.full(1, np.nan, "f4")}
    )
    text = "; ".join(problems_of(adapter))
    for part in ("use_dora", "bias", "lora_alpha", "vision tower", "'odd': not below", "not finite"):
        assert part in text


def test_missing_files_are_named(tmp_path):
    assert problems_of(tmp_path) == (f"{CONFIG}: missing", f"{WEIGHTS}: missing")


def write_pickle(path: Path):
    path.write_bytes(pickle.dumps({"a": 1}, protocol=4))


def write_torch_archive(path: Path):
    torch.save({"a": torch.zeros(1)}, path)


def write_zip(path: Path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")


@pytest.mark.parametrize("write", [write_pickle, write_torch_archive, write_zip])
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMISER])
def test_a_pickle_by_another_name_is_refused_unopened(adapter, write, name):
    write(adapter / name)
    assert one_problem(adapter) == (
        f"{name}: a pickle or an archive, not safetensors; write it with safetensors.torch.save_file"
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"\x00",
        lambda data: struct.pack("<Q", 2**63) + data[8:],
        lambda data: struct.pack("<Q", 2**24 + 1) + b"{" + bytes(2**24 + 8),
        lambda data: struct.pack("<Q", 2) + b"{}" + b"\x00" * 8,
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: struct.pack("<Q", 100_000) + b"{" * 100_000,
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(adapter, spoil):
    (adapter / WEIGHTS).write_bytes(spoil((adapter / WEIGHTS).read_bytes()))
    assert one_problem(adapter).startswith(f"{WEIGHTS}: ")


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path):
    """640 is 80 02 in bytes, which is how a pickle of protocol 2 begins."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(640)
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", 640) + header + bytes(4))
    assert header_problem(tmp_path / WEIGHTS) is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 7000), patch=st.binary(min_size=1, max_size=12))
def test_no_damage_to_a_header_ends_in_anything_but_a_list(adapter, saved_by_peft, start, patch):
    data = bytearray((saved_by_peft / WEIGHTS).read_bytes())
    data[start : start + len(patch)] = patch
    (adapter / WEIGHTS).write_bytes(data)
    with suppress(InvalidAdapterError):
        check_adapter(adapter, BASE, 8)


def test_moments_are_read_too(adapter):
    save_file({"exp_avg": np.zeros(3, "f4"), "step": np.array(3)}, adapter / OPTIMISER)
    assert check_adapter(adapter, BASE, 8).rank == 8
    save_file({"exp_avg": np.array([0, np.inf], "f4")}, adapter / OPTIMISER)
    assert one_problem(adapter) == f"{OPTIMISER}: 'exp_avg': with values that are not finite"


def test_upload_limits_let_the_largest_adapter_in(adapter):
    limits = upload_limits(BASE, 8)
    size = (adapter / WEIGHTS).stat().st_size
    assert set(limits) == {CONFIG, WEIGHTS, OPTIMISER}
    assert size <= limits[WEIGHTS] < size + 2**25
    assert limits[OPTIMISER] > 2 * (size - 2**14)


def test_another_kind_of_base_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(UserError, match="model_type 'gemma3'; take a base of type qwen3_vl, qwen3, llama"):
        base_shape(tmp_path)


def test_a_base_whose_layers_see_a_window_alone_is_told(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "use_sliding_window": true}')
    with pytest.raises(UserError, match="use_sliding_window: its layers see a part of their context; take a base"):
        base_shape(tmp_path)


def test_finite_weights_that_no_training_reaches_are_refused(adapter):
    change_weights(adapter, lambda weights: weights | {FIRST: np.full_like(weights[FIRST], -1e30)})
    problem = one_problem(adapter)
    assert "q_proj.lora_A.weight' with 1e+30: at most 1000 is taken" in problem
    assert "--max-adapter-value" in problem


def test_weights_that_are_large_only_together_are_refused(adapter):
    second = FIRST.replace("lora_A", "lora_B")
    large = {key: lambda weight: np.full_like(weight, 900.0) for key in (FIRST, second)}
    change_weights(adapter, lambda weights: weights | {key: fill(weights[key]) for key, fill in large.items()})
    # 900 * 900 * 16 / 8
    problem = one_problem(adapter)
    assert "q_proj.lora_A.weight' with 1.62e+06: a change of the base's weights" in problem
    assert check_adapter(adapter, BASE, 8, WeightBounds(change=1e7)).rank == 8


def test_a_header_of_a_quarter_million_tensors_is_not_looked_through(adapter):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": empty for number in range(250_000)}).encode()
    (adapter / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    assert "no safetensors header of at most 1048576 bytes" in one_problem(adapter)


def test_the_served_copy_is_the_master_in_the_engines_dtype(adapter, tmp_path):
    from safetensors.torch import load_file as load_torch

    masters = load_torch(adapter / WEIGHTS)
    dtypes: dict[Literal["bfloat16", "float32"], torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    for name, dtype in dtypes.items():
        served_copy(adapter, tmp_path / "cache" / name, name)
        copy = load_torch(tmp_path / "cache" / name / WEIGHTS)
        assert copy.keys() == masters.keys()
        assert all(torch.equal(copy[key], masters[key].to(dtype)) for key in masters)
        assert (tmp_path / "cache" / name / CONFIG).read_bytes() == (adapter / CONFIG).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["bfloat16", "float32"]


def test_a_served_copy_that_fails_leaves_nothing(adapter, tmp_path):
    (adapter / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError):
        served_copy(adapter, tmp_path / "cache" / "image@1", "float32")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_engine_reads_the_served_copy_as_it_was_checked(adapter, tmp_path):
    """The config's meaning here is vLLM's: rank, scale and the names of the tensors."""
    from vllm.lora.peft_helper import PEFTHelper

    configure(adapter, use_rslora=True)
    checked = check_adapter(adapter, BASE, 8)
    served_copy(adapter, tmp_path / "image@1", "bfloat16")
    helper = PEFTHelper.from_local_dir(str(tmp_path / "image@1"), 256)
    assert (helper.r, helper.vllm_lora_scaling_factor) == (checked.rank, checked.scale)

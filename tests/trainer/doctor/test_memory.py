import json
import math

import pytest
from safetensors import safe_open

from adapters.base import locate
from tests.text_bases import KINDS, write_text_base
from trainer.doctor import lowering, memory
from trainer.doctor.lowering import Knob, Lowered
from trainer.recipe import TARGET_MODULES

SHAPE = memory.KNOWN_SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
BF16 = 2


def gigabytes(count):
    return round(count / 1e9, 1)


def bytes_of(parts):
    return {part.name: part.bytes for part in parts}


@pytest.fixture
def service():
    return memory.service_parts(
        SHAPE,
        element=BF16,
        slots=8,
        slot_rank=64,
        kv_cache_gib=28.0,
        batched_tokens=8192,
        sequences=256,
        on_gpu=True,
    )


@pytest.fixture
def worker():
    return memory.worker_parts(SHAPE, element=BF16, rank=64, branches=3, tokens=16_384, on_gpu=True)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as counted in transformers' models of these shapes
        ("Qwen/Qwen3-VL-2B-Instruct", 2_127_532_032),
        ("Qwen/Qwen3-VL-4B-Instruct", 4_437_815_808),
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-1.7B", 1_720_574_976),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_known_bases_have_their_published_size(name, parameters):
    assert memory.KNOWN_SHAPES[name].parameters == parameters


def test_an_adapter_grows_with_its_rank():
    assert memory.lora_parameters(SHAPE, 1) == 2_064_384
    assert memory.lora_parameters(SHAPE, 64) == 64 * 2_064_384


def test_an_adapter_of_fewer_projections_is_smaller():
    # 36 layers: outputs and inputs of v (2560, 1024) and of down (9728, 2560)
    assert memory.lora_parameters(SHAPE, 8, ("v_proj", "down_proj")) == 8 * 36 * (2560 + 1024 + 9728 + 2560)
    whole, part = (
        memory.worker_parts(SHAPE, element=BF16, rank=8, branches=3, tokens=1024, on_gpu=True, modules=modules)
        for modules in (TARGET_MODULES, ("v_proj", "down_proj"))
    )
    saved = memory.lora_parameters(SHAPE, 8) - memory.lora_parameters(SHAPE, 8, ("v_proj", "down_proj"))
    # Of each branch a master and two moments, and the gradients of one.
    assert memory.total(whole) - memory.total(part) == saved * (3 * 12 + 4)


def test_a_token_of_cache_is_147_kilobytes():
    assert memory.kv_bytes_per_token(SHAPE, BF16) == 147_456


def test_three_branches_of_rank_64_on_one_80_gb_card(service, worker):
    parts = bytes_of([*service, *worker])
    assert gigabytes(parts["base weights"]) == gigabytes(parts["base copy"]) == 8.9
    assert gigabytes(parts["adapter slots"]) == 2.1
    assert gigabytes(parts["runtime, graphs, activations"]) == 4.0
    assert gigabytes(parts["masters, moments, gradients"]) == 5.3
    assert gigabytes(parts["runtime, activations"]) == 8.6
    assert round(memory.total(service) / 1e9) == 45
    assert round(memory.total(worker) / 1e9) == 23


def test_a_config_gives_the_shape_that_is_in_the_table():
    config = {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 9728,
            "vocab_size": 151_936,
        },
        "vision_config": {
            "hidden_size": 1024,
            "depth": 24,
            "intermediate_size": 4096,
            "out_hidden_size": 2560,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
            "patch_size": 16,
            "temporal_patch_size": 2,
            "in_channels": 3,
            "spatial_merge_size": 2,
        },
    }
    assert memory.shape_of(json.loads(json.dumps(config))) == SHAPE


def test_the_miniatures_config_counts_its_weights():
    """Against the header of its weights: eight bytes of length, then each tensor's shape."""
    folder = locate("miniature")
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    weights = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    assert memory.shape_of(json.loads((folder / "config.json").read_text())).parameters == weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_without_vision_has_the_size_of_its_weights(tmp_path, kind):
    folder = write_text_base(tmp_path / kind, kind)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        weights = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118, no mapping
    assert memory.shape_of(json.loads((folder / "config.json").read_text())).parameters == weights


def test_the_host_pays_no_card_overhead():
    on_host = memory.worker_parts(SHAPE, element=BF16, rank=64, branches=3, tokens=1024, on_gpu=False)
    on_card = memory.worker_parts(SHAPE, element=BF16, rank=64, branches=3, tokens=1024, on_gpu=True)
    assert bytes_of(on_host)["base copy"] == bytes_of(on_card)["base copy"]
    assert memory.total(on_host) != memory.total(on_card)


def test_the_store_keeps_moments_of_two_revisions_and_of_phase_ends():
    assert memory.store_bytes(1000, branches=3, keep_last=4, phase_ends=0) == 3 * (4 * 4000 + 2 * 8000)
    assert memory.store_bytes(1000, branches=1, keep_last=4, phase_ends=10) == 14 * 4000 + 12 * 8000


def test_nothing_is_lowered_when_it_fits():
    assert lowering.lower(0.0, [Knob("a", 10, (5,), 1.0)]) == ([], 0.0)


def test_the_first_number_is_lowered_just_far_enough():
    knobs = [Knob("a", 10, (9, 8, 5), 100.0), Knob("b", 10, (5,), 100.0)]
    assert lowering.lower(150.0, knobs) == ([Lowered("a", 10, 8)], 0.0)


def test_the_next_number_pays_what_the_first_cannot():
    knobs = [Knob("a", 10, (9, 8), 100.0), Knob("stuck", 1, (), 100.0), Knob("b", 10, (9, 5), 100.0)]
    assert lowering.lower(400.0, knobs) == ([Lowered("a", 10, 8), Lowered("b", 10, 5)], 0.0)


def test_what_no_number_removes_is_left():
    assert lowering.lower(400.0, [Knob("a", 10, (9,), 100.0)]) == ([Lowered("a", 10, 9)], 300.0)


def test_knobs_stop_where_the_run_would():
    service = lowering.service_knobs(
        SHAPE, element=BF16, kv_cache_gib=30.0, slots=8, branches=3, rank=64, model_len=8193
    )
    floors = {knob.path: knob.choices[-1] for knob in service}
    assert floors == {"engine.kv_cache_gib": 1.5, "engine.max_loras": 4, "lora.rank": 8}
    assert 1.0 * memory.GIB < 8193 * memory.kv_bytes_per_token(SHAPE, BF16) <= 1.5 * memory.GIB
    worker = lowering.worker_knobs(SHAPE, element=BF16, tokens=16_384, rank=64, branches=3, sequence=8192)
    assert worker[0].choices == (15_360, 14_336, 13_312, 12_288, 11_264, 10_240, 9216, 8192)
    assert lowering.worker_knobs(SHAPE, element=BF16, tokens=8192, rank=8, branches=3, sequence=8192)[0].choices == ()


def test_knobs_cost_what_the_parts_say(worker):
    tokens, rank = lowering.worker_knobs(SHAPE, element=BF16, tokens=16_384, rank=64, branches=3, sequence=8192)
    fewer = memory.worker_parts(SHAPE, element=BF16, rank=64, branches=3, tokens=8192, on_gpu=True)
    assert memory.total(worker) - memory.total(fewer) == 8192 * tokens.bytes_per_unit
    smaller = memory.worker_parts(SHAPE, element=BF16, rank=32, branches=3, tokens=16_384, on_gpu=True)
    assert memory.total(worker) - memory.total(smaller) == 32 * rank.bytes_per_unit


def test_on_a_shared_card_a_rank_is_paid_twice():
    service, worker = Knob("lora.rank", 64, (32,), 2.0), Knob("lora.rank", 64, (32,), 3.0)
    cache = Knob("engine.kv_cache_gib", 30, (29,), 1.0)
    assert lowering.shared_knobs([service, worker, cache]) == (cache, Knob("lora.rank", 64, (32,), 5.0))

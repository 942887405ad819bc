"""What each card holds and does, against numbers that can be worked out on paper and against transformers' models."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLMoeConfig

from trainer.doctor import memory
from trainer.doctor.cards import ONE_CARD, Spread, spread_of
from trainer.doctor.fit import parts_of
from trainer.doctor.memory import GIB, KNOWN_SHAPES, MemoryPart, Shape, service_parts, worker_parts
from trainer.doctor.price import CARDS, Engine, Group, hours, token_seconds
from trainer.recipe.file import load

# 2 layers with 2 heads of 2 channels, and as many of keys and of values; an MLP of 4 x 6; 10 tokens; an own output.
SMALL = Shape(4, 2, 2, 2, 2, 6, 10, tied=False, vision_parameters=100)
LAYER = 4 * 16 + 3 * 24 + 2 * 4 + 2 * 2
QWEN_32B, QWEN_30B_A3B = (KNOWN_SHAPES[f"Qwen/Qwen3-VL-{size}-Instruct"] for size in ("32B", "30B-A3B"))
VISION: dict[str, Any] = {
    "hidden_size": 1152, "depth": 27, "num_heads": 16, "intermediate_size": 4304, "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "32B": {
        "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 128, "intermediate_size": 25_600, "vocab_size": 151_936,
    },
    "30B-A3B": {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151_936,
    },
}  # fmt: skip


def bytes_of(parts: tuple[MemoryPart, ...]) -> dict[str, int]:
    return {part.name: part.bytes for part in parts}


def service(shape: Shape, tensor_parallel: int, slots: int = 0) -> dict[str, int]:
    return bytes_of(
        service_parts(
            shape, element=2, slots=slots, slot_rank=8, kv_cache_gib=1.0, batched_tokens=100, sequences=0, on_gpu=True,
            tensor_parallel=tensor_parallel,
        )
    )  # fmt: skip


def worker(shape: Shape, shards: int) -> dict[str, int]:
    return bytes_of(worker_parts(shape, element=2, rank=8, branches=3, tokens=64, on_gpu=True, shards=shards))


@pytest.mark.parametrize(
    ("config", "size"), [(Qwen3VLConfig, "32B"), (Qwen3VLMoeConfig, "30B-A3B")], ids=["dense", "experts"]
)
def test_large_bases_have_as_many_parameters_as_their_models(config: Any, size: str) -> None:
    text = TEXTS[size] | {"tie_word_embeddings": False}
    vision = VISION | {"out_hidden_size": text["hidden_size"]}
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            config(text_config=text, vision_config=vision, tie_word_embeddings=False)
        )
    shape = KNOWN_SHAPES[f"Qwen/Qwen3-VL-{size}-Instruct"]
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    layer = model.model.language_model.layers[0]
    assert shape.layer_parameters == sum(parameter.numel() for parameter in layer.parameters())


def test_a_small_layer_is_counted_by_hand() -> None:
    assert SMALL.layer_parameters == LAYER
    assert SMALL.parameters == 2 * LAYER + 2 * 10 * 4 + 4 + 100


def test_each_card_of_a_core_has_its_part_of_weights_and_cache() -> None:
    whole, half = service(SMALL, 1), service(SMALL, 2)
    assert whole["base weights"] == 2 * SMALL.parameters
    assert half["base weights"] == SMALL.parameters
    assert whole["KV cache"] == half["KV cache"] == GIB  # of each card: twice as many tokens together
    # A token's hidden states are on both: 4 x 4 numbers; the heads (2 + 2 x 2) x 2 and the MLP's 3 x 6 are shared out.
    step = 100 * 2
    assert whole["runtime, graphs, activations"] - half["runtime, graphs, activations"] == step * (12 + 18) // 2


def test_the_cache_of_two_cards_has_twice_the_tokens_until_heads_run_out() -> None:
    def tokens(cards: int) -> int:
        parts = service_parts(
            QWEN_30B_A3B, element=2, slots=0, slot_rank=8, kv_cache_gib=1.0, batched_tokens=1, sequences=0, on_gpu=True,
            tensor_parallel=cards,
        )  # fmt: skip
        (note,) = (part.note for part in parts if part.name == "KV cache")
        return int(note.split()[0].replace(",", ""))

    single = GIB // (2 * 48 * 4 * 128 * 2)
    assert tokens(1) == single
    assert tokens(2) == pytest.approx(2 * single, abs=1)
    assert tokens(8) == tokens(4) == pytest.approx(4 * single, abs=3)  # four heads of keys


def test_a_slot_is_split_on_the_side_that_its_weight_is() -> None:
    # q, k, v: 4 in, 4 out; o: 4, 4; gate, up: 4, 6; down: 6, 4. On two cards:
    split = 3 * (4 + 4 / 2) + (4 / 2 + 4) + 2 * (4 + 6 / 2) + (6 / 2 + 4)
    whole = 4 * 8 + 3 * 10
    assert service(SMALL, 1, slots=5)["adapter slots"] == 5 * 2 * 8 * whole * 2
    assert service(SMALL, 2, slots=5)["adapter slots"] == 5 * 2 * 8 * split * 2


def test_shards_divide_the_layers_and_nothing_else() -> None:
    whole, quarter = worker(SMALL, 1), worker(SMALL, 4)
    rest = 2 * 10 * 4 + 4 + 100
    assert whole["base copy"] == 2 * SMALL.parameters
    assert quarter["base copy"] == 2 * (2 * LAYER // 4 + rest + 2 * LAYER)  # two whole layers pass through
    for name in ("masters, moments, gradients", "runtime, activations"):
        assert whole[name] == quarter[name]


def test_a_base_of_32b_fits_a_worker_of_eight_shards_and_no_single_card() -> None:
    assert worker(QWEN_32B, 1)["base copy"] > 0.75 * 79 * GIB
    # 31.2 G of layers in eight parts, 2.2 G of the rest, two layers of 0.49 G.
    assert worker(QWEN_32B, 8)["base copy"] / 2e9 == pytest.approx(31.2 / 8 + 2.15 + 2 * 0.487, rel=0.01)


def test_a_token_goes_through_three_of_thirty_billion_weights() -> None:
    active = QWEN_30B_A3B.layers * QWEN_30B_A3B.layer_weights(QWEN_30B_A3B.active_experts)
    assert active / 1e9 == pytest.approx(2.73, abs=0.01)
    assert memory.adapted_modules(QWEN_30B_A3B) == ("q_proj", "k_proj", "v_proj", "o_proj")
    attention = sum(sum(size) for size in QWEN_30B_A3B.projections[:4])
    assert memory.lora_parameters(QWEN_30B_A3B, 64) == 48 * 64 * attention


def test_many_sequences_read_every_expert_and_a_single_one_its_eight() -> None:
    group, card, few = Group(100, 100, 8, 0), CARDS["h100"], replace(QWEN_30B_A3B, experts=8)
    alone = token_seconds(group, QWEN_30B_A3B, card, Engine(1, 30))
    # As fast as with eight experts in all, but for the router's 120 more columns in each layer.
    assert alone == pytest.approx(token_seconds(group, few, card, Engine(1, 30)), rel=0.01)
    together = token_seconds(group, QWEN_30B_A3B, card, Engine(2000, 1000)) * 2000
    weights = 2 * (QWEN_30B_A3B.parameters - QWEN_30B_A3B.vision_parameters)
    assert together > weights / card.bandwidth * 0.97


def test_cores_and_workers_share_the_hours() -> None:
    groups, qwen = {Group(1024, 1024, 8, 1): 100}, KNOWN_SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
    single, spread = (
        hours(groups, qwen, CARDS["h100"], Engine(1, 30), rank=64, spread=spread)
        for spread in (ONE_CARD, Spread(data_parallel=2, tensor_parallel=4, workers=3, processes=2))
    )
    assert spread.updates == pytest.approx(single.updates / 6)
    assert spread.scoring == pytest.approx(single.scoring / 8)
    assert spread.sampling == pytest.approx(single.sampling / 8)  # of one sequence, wherever it is


def test_fewer_sequences_on_each_core_amortise_its_weights_less() -> None:
    groups, qwen = {Group(1024, 1024, 8, 1): 100}, KNOWN_SHAPES["Qwen/Qwen3-VL-4B-Instruct"]
    single, spread = (
        hours(groups, qwen, CARDS["h100"], Engine(64, 30), rank=64, spread=spread).sampling
        for spread in (ONE_CARD, Spread(data_parallel=4))
    )
    assert single / 4 < spread < single


@pytest.mark.parametrize(
    ("spread", "cards", "hosts"),
    [
        (ONE_CARD, 1, 1),
        (Spread(workers=2), 3, 1),
        (Spread(data_parallel=4, processes=4), 8, 1),
        (Spread(data_parallel=2, tensor_parallel=4, processes=8), 16, 2),
        (Spread(data_parallel=3, tensor_parallel=6), 19, 3),  # two cards of each host stay free
        (Spread(data_parallel=8, workers=4, processes=4), 24, 3),
    ],
)
def test_cores_and_workers_are_whole_on_a_host(spread: Spread, cards: int, hosts: int) -> None:
    assert (spread.cards, spread.hosts(8)) == (cards, hosts)


def test_a_recipe_says_how_its_engine_is_spread() -> None:
    recipe = load(Path("recipes/gpu-1x80g-4b.toml"), ["engine.data_parallel=2", "worker.shard=true"])
    spread = spread_of(recipe, workers=3, processes=4)
    assert spread == Spread(2, 1, 3, 4, shard=True)
    assert (spread.shards, str(spread)) == (4, "2 cores of 1, 3 workers of 4, the base in shards")


def test_without_cards_all_cores_are_in_the_memory_of_the_host() -> None:
    single, double = (
        parts_of(load(Path("recipes/miniature.toml"), [f"engine.data_parallel={cores}"]), SMALL, on_gpu=False)
        for cores in (1, 2)
    )
    for part, doubled in zip(single, double, strict=True):
        assert doubled.bytes == part.bytes * (2 if part.process == "service" else 1), part.name

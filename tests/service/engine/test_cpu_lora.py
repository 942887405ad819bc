"""The kernel against each token's own product in float64."""

import pytest
import torch
from vllm.lora.layers import LoRAMapping

from service.engine.cpu_lora import CpuLora

TOKENS, SLOTS, RANK, WIDTH = 24, 5, 4, 16
SLICES = (12, 8, 20)
NUMBERS = [None, 7, 3, 9, 4]  # of the adapters in the slots

BATCHES = {
    "one slot": [3] * TOKENS,
    "several slots": [3] * 10 + [9] * 2 + [4] * 12,
    "slots in turn": [4, 7, 9] * (TOKENS // 3),
    "every slot and the base": [0, 7, 3, 9, 4, 0] * (TOKENS // 6),
    "one slot and the base": [0] * 5 + [9] * 19,
    "the base alone": [0] * TOKENS,
}


def kernel(adapters):
    """As vLLM tells it before a step; 0 is the base."""
    lora = CpuLora(64, 64, "cpu")
    tell(lora, adapters)
    return lora


def tell(lora, adapters):
    mapping = LoRAMapping(tuple(adapters), tuple(adapters), is_prefill=True)
    lora.update_metadata(mapping, NUMBERS, SLOTS, 100)


def weights(slices=SLICES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, WIDTH, generator=generator).to(dtype) for _ in slices)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=generator).to(dtype) for width in slices)
    return a, b


def tensor(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(y_TO, x_TI, a, b, adapters, scale=1.0):
    rows = []
    for y_O, x_I, adapter in zip(y_TO.double(), x_TI.double(), adapters, strict=True):
        if adapter:
            slot = NUMBERS.index(adapter)
            pairs = [(a_S1RI[slot, 0].double(), b_S1OR[slot, 0].double()) for a_S1RI, b_S1OR in zip(a, b, strict=True)]
            y_O = y_O + scale * torch.cat([b_OR @ (a_RI @ x_I) for a_RI, b_OR in pairs])
        rows.append(y_O)
    return torch.stack(rows)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_each_token_gets_its_own_adapters_product(batch, dtype, rtol) -> None:
    adapters = BATCHES[batch]
    (a, b), x, y = weights(dtype=dtype), tensor(TOKENS, WIDTH, dtype=dtype), tensor(TOKENS, sum(SLICES), dtype=dtype)
    wanted = expected(y, x, a, b, adapters, scale=0.5)
    kernel(adapters).add_lora_linear(y, x, a, b, 0.5, SLICES)
    # bfloat16 rounds the inner product: what cancels keeps the error of its terms
    torch.testing.assert_close(y.double(), wanted, rtol=rtol, atol=rtol * float(wanted.abs().mean()))


def test_the_bases_rows_stay_bit_for_bit() -> None:
    adapters = BATCHES["every slot and the base"]
    (a, b), x, y = weights(), tensor(TOKENS, WIDTH), tensor(TOKENS, sum(SLICES))
    before = y.clone()
    kernel(adapters).add_lora_linear(y, x, a, b, 1.0, SLICES)
    same = (y == before).all(dim=1)
    assert same.tolist() == [adapter == 0 for adapter in adapters]


@pytest.mark.parametrize("batch", BATCHES)
def test_weights_of_absent_slots_are_not_read(batch) -> None:
    adapters = BATCHES[batch]
    (a, b), x, y = weights(), tensor(TOKENS, WIDTH), tensor(TOKENS, sum(SLICES))
    for slot, number in enumerate(NUMBERS):
        if number not in adapters:
            for weight in (*a, *b):
                weight[slot] = torch.nan
    kernel(adapters).add_lora_linear(y, x, a, b, 1.0, SLICES)
    assert y.isfinite().all()


@pytest.mark.parametrize("batch", BATCHES)
def test_a_view_of_a_wider_output_is_written_in_place(batch) -> None:
    adapters = BATCHES[batch]
    (a, b), wide = weights(), tensor(TOKENS, sum(SLICES) + 10)
    x = tensor(WIDTH, TOKENS).T
    y, beside = wide[:, 4:-6], wide[:, [0, 1, 2, 3, -6, -5, -4, -3, -2, -1]]
    wanted = expected(y, x, a, b, adapters)
    kernel(adapters).add_lora_linear(y, x, a, b, 1.0, SLICES)
    torch.testing.assert_close(wide[:, 4:-6].double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(wide[:, [0, 1, 2, 3, -6, -5, -4, -3, -2, -1]], beside)


def test_layers_of_other_ranks_and_a_next_step_see_their_own_slots() -> None:
    lora = kernel(BATCHES["slots in turn"])
    for batch in ("slots in turn", "one slot", "the base alone", "one slot and the base"):
        tell(lora, BATCHES[batch])
        for rank in (RANK, 2):
            a, b = weights()
            a, b = tuple(a_S1RI[:, :, :rank] for a_S1RI in a), tuple(b_S1OR[..., :rank] for b_S1OR in b)
            x, y = tensor(TOKENS, WIDTH), tensor(TOKENS, sum(SLICES))
            wanted = expected(y, x, a, b, BATCHES[batch])
            lora.add_lora_linear(y, x, a, b, 1.0, SLICES)
            torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_slot_that_overflows_stays_within_its_own_tokens() -> None:
    adapters = [0, 7, 3] * (TOKENS // 3)
    a, b = weights()
    for a_S1RI in a:
        a_S1RI[NUMBERS.index(7)] = 3e38  # finite, and no sum of its products is
    x_TI, y_TO = tensor(TOKENS, WIDTH), tensor(TOKENS, sum(SLICES), seed=2)
    out_TO = y_TO.clone()
    kernel(adapters).add_lora_linear(out_TO, x_TI, a, b, 1.0, SLICES)
    rows_T = torch.tensor(adapters) != 7
    calm = [adapter if adapter != 7 else 0 for adapter in adapters]
    torch.testing.assert_close(out_TO[rows_T].double(), expected(y_TO, x_TI, a, b, calm)[rows_T], rtol=1e-5, atol=1e-4)
    assert not out_TO[~rows_T].isfinite().any()

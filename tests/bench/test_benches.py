"""That the benches of the update run, and measure what they say. Their figures are no matter here."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3VLConfig

from bench import gpu_lab, gpu_step, growth
from bench.gpu_lab import ADAPTERS, DENSE, EAGER, FLASH, OURS, QWEN3_VL_4B, ROWS, TINY, WAYS, Lab
from clients.cli import main
from trainer.doctor.memory import KNOWN_SHAPES, lora_parameters, shape_of
from trainer.doctor.price import model_flops
from trainer.update.attention import Layout, layout, visibility
from trainer.update.packing import lay_out

KEYS = {"what", "unit", "ours", "peer", "theirs", "ratio"}
CASE = (24, 9)


@pytest.fixture(scope="module")
def lab() -> Lab:
    return gpu_lab.make_lab(TINY, torch.device("cpu"))


def test_the_model_has_the_shape_of_the_4b() -> None:
    assert shape_of(Qwen3VLConfig(**QWEN3_VL_4B).to_dict()) == KNOWN_SHAPES["Qwen/Qwen3-VL-4B-Instruct"]


@pytest.mark.parametrize("way", [EAGER, ROWS, DENSE, FLASH])
def test_every_way_of_a_step_computes_the_same(lab: Lab, way: str) -> None:
    rollout = gpu_lab.make_rollout(lab, CASE)
    logprobs, gradients = gpu_lab.forward_backward(lab, WAYS[OURS], rollout)
    peer_logprobs, peer_gradients = gpu_lab.forward_backward(lab, WAYS[way], rollout)
    assert logprobs.shape == (TINY.group * CASE[1],)
    torch.testing.assert_close(logprobs, peer_logprobs, atol=2e-6, rtol=0)
    torch.testing.assert_close(gradients, peer_gradients, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_flops_are_those_of_the_products(lab: Lab, way: str) -> None:
    """All but the gradients of the first layer's input, which nobody wants; attention is not counted by the counter."""
    rollout = gpu_lab.make_rollout(lab, CASE)
    tokens, _ = WAYS[way].load(rollout)
    lab.language.gradient_checkpointing_disable()
    with FlopCounterMode(display=False) as counter:
        gpu_lab.forward_backward(lab, WAYS[way], rollout)
    lab.policy.recompute_layers()
    predicted = TINY.group * CASE[1]
    expected_flops = model_flops(lab.shape, TINY.rank, tokens=tokens, pairs=0, predicted=predicted)
    into_first = sum(outputs + TINY.rank for _, outputs in lab.shape.projections[:3]) * lab.shape.hidden
    assert counter.get_total_flops() == expected_flops - 2 * tokens * into_first


def test_pairs_are_those_that_a_mask_lets_through(lab: Lab) -> None:
    rollout = gpu_lab.make_rollout(lab, CASE)
    pack = lay_out([rollout])
    zero, places_T = torch.tensor(0), torch.arange(len(pack.ids_T))
    mask_TT = visibility(pack.spans, lab.device)(zero, zero, places_T[:, None], places_T[None])
    assert WAYS[OURS].load(rollout) == WAYS[DENSE].load(rollout) == (len(mask_TT), int(mask_TT.sum()))
    length = sum(CASE)
    assert WAYS[ROWS].load(rollout) == (TINY.group * length, TINY.group * int(torch.ones(length, length).tril().sum()))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_whole_model_is_the_same_through_a_block_mask(lab: Lab) -> None:
    """As on a GPU, but not compiled."""
    lab.policy.adapters.select(ADAPTERS[0])
    pack = lay_out([gpu_lab.make_rollout(lab, (131, 70))])
    tokens = len(pack.ids_T)
    mask = create_block_mask(visibility(pack.spans, lab.device), None, None, tokens, tokens, device="cpu")
    with torch.no_grad():
        plain, masked = (
            lab.language(input_ids=torch.from_numpy(pack.ids_T)[None], layout=how).last_hidden_state
            for how in (layout(pack.spans, lab.device), Layout(block_mask=mask))
        )
    torch.testing.assert_close(plain, masked, atol=2e-5, rtol=0)


def test_gpu_step_goes_through_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert main(["bench", "gpu_step", "--tiny", "--seconds=1000", f"--json={file}"]) == 0
    printed = capsys.readouterr().out
    assert "40/12 dense mask: refused, 73 packed tokens are more than 60" in printed
    rows = json.loads(file.read_text())
    assert all(row.keys() == KEYS for row in rows)
    words = " ".join(row["what"] for row in rows)
    for section in ("40/12 step", "24/9 step", "update of one adapter", "logits at once", "save", "a new length"):
        assert section in words
    assert {row["peer"] for row in rows if row["what"] == "gpu_step: 24/9 step"} == {EAGER, ROWS, DENSE, FLASH}


def test_a_section_that_fails_leaves_the_others(tmp_path: Path, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    broken = replace(lab, sizes=replace(TINY, cases=(CASE,), lengths=(), logprob_rows=-1))
    file = tmp_path / "rows.json"
    assert not gpu_step.run_sections(broken, time.monotonic() + 1000, file)
    assert "log-probs in chunks: failed: RuntimeError: " in capsys.readouterr().out
    assert any("save an adapter" in row["what"] for row in json.loads(file.read_text()))


def test_a_section_that_would_be_late_is_skipped(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_step.run_sections(lab, time.monotonic() + 20, None)
    printed = capsys.readouterr().out
    assert "24/9 packed: skipped, it may take 60 s" in printed
    assert "save an adapter" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_gpu_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu_step"]) == 0
    assert capsys.readouterr().out == "gpu_step: no CUDA device here, nothing is measured\n"


def test_adapters_cost_their_masters_and_moments() -> None:
    """And a count of updates for each of their matrices."""
    first, second = (growth.measure(growth.Point("adapters", 2, 16, adapters), 1, updates=1) for adapters in (1, 2))
    shape = shape_of(json.loads((growth.locate("miniature") / "config.json").read_text()))
    matrices = 2 * len(shape.projections) * shape.layers
    assert first.tensors == 12 * lora_parameters(shape, growth.RANK) + 4 * matrices
    assert second.tensors == 2 * first.tensors
    assert first.tokens == second.tokens == 16 + 2 * (growth.COMPLETION - 1)
    assert second.peak >= second.resident > second.tensors


@pytest.fixture
def figures() -> growth.Growth:
    return {
        point: growth.Figures(
            seconds=0.1 * point.size, tokens=50 * point.size, peak=10**9, resident=10**8 + 12 * 10**6 * point.adapters,
            tensors=11 * 10**6 * point.adapters,
        )
        for point in growth.POINTS
    }  # fmt: skip


def test_growth_is_told_beside_the_smallest(figures: growth.Growth) -> None:
    rows = growth.json_rows(figures)
    assert all(row.keys() == KEYS for row in rows)
    (four,) = (row for row in rows if row["what"] == "growth: update, G = 4" and row["unit"] == "s")
    assert (four["peer"], four["theirs"], four["ratio"]) == ("G = 1", 0.1, pytest.approx(4))
    assert rows[-1]["ours"] == pytest.approx(12)
    assert rows[-1]["theirs"] == 11
    assert "one more adapter: 12.00 MB resident, its masters and moments 11.00 MB" in growth.table(figures)


def test_growth_is_drawn(figures: growth.Growth, tmp_path: Path) -> None:
    growth.draw(figures, tmp_path / "docs" / "growth.png")
    assert (tmp_path / "docs" / "growth.png").read_bytes().startswith(b"\x89PNG")

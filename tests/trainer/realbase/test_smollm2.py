"""The real one: what SmolLM2 says by itself and embedded, by transformers and through the service; and what it sees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from clients.cli import main
from service.publishing.decisions import MAX_CANARY_DIFFERENCE
from service.schemas import CANARY_COMPLETION, CANARY_PROMPT
from tests.engine.service_process import ServiceProcess
from trainer.realbase.sight import share_read
from trainer.realbase.source import read_source

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

LENGTH, ROWS = 250, 8
"""Tokens of prose in a sequence, and the sequences: 2,000 tokens."""
DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `coevo base smollm2` makes it."""
    folder = tmp_path_factory.mktemp("bases") / "smollm2"
    assert main(["base", "smollm2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "llama"
    assert main(["base", "smollm2", "--text-only", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def expected() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [ROWS, LENGTH + 1], and the log-probabilities of all but the first by the source itself."""
    model, tokenizer = read_source()
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    ids_T: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids_RT = torch.tensor(ids_T[: ROWS * (LENGTH + 1)]).view(ROWS, LENGTH + 1)
    return ids_RT, chosen(model, ids_RT)


@torch.inference_mode()
def chosen(model: Any, ids_RT: torch.Tensor) -> torch.Tensor:
    """[ROWS, LENGTH], a row at a time: all logits together would be 0.4 GB."""
    rows = [model(input_ids=ids_T[None]).logits[0, :-1].log_softmax(-1) for ids_T in ids_RT]
    return torch.stack([row.gather(-1, ids_T[1:, None])[:, 0] for row, ids_T in zip(rows, ids_RT, strict=True)])


def assert_equal_to_rounding(measured: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (measured - expected).abs()
    print(f"{difference.numel()} tokens: max {difference.max():.2g}, mean {difference.mean():.2g}")
    assert difference.numel() == ROWS * LENGTH
    assert difference.max() < 2e-4
    assert difference.mean() < 2e-5


def test_embedded_it_says_the_same(embedded: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids_RT, logprobs_RT = expected
    model = Qwen3VLForConditionalGeneration.from_pretrained(embedded, dtype=torch.float32).eval()
    assert_equal_to_rounding(chosen(model, ids_RT), logprobs_RT)


def test_by_itself_it_is_a_base_too(plain: Path, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    ids_RT, logprobs_RT = expected
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    assert torch.equal(chosen(model, ids_RT[:1]), logprobs_RT[:1])


@pytest.mark.parametrize("name", ["embedded", "plain"])
def test_the_service_says_the_same(
    name: str, expected: tuple[torch.Tensor, torch.Tensor], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    ids_RT, logprobs_RT = expected
    flags = [f"--base={request.getfixturevalue(name)}", "--dtype=float32", "--kv-cache-gib=1"]
    service = ServiceProcess(tmp_path / "store", *flags)
    try:
        sequences = [{"prompt": row[:1], "completion": row[1:]} for row in ids_RT.tolist()]
        with service.client() as http:
            answer = http.post("/logprobs?adapter=base", json={"sequences": sequences}, timeout=900)
        assert answer.status_code == 200, answer.text
        rows = [row["logprobs"] for row in answer.json()["adapters"][0]["sequences"]]
    finally:
        service.stop()
    assert_equal_to_rounding(torch.tensor(np.array(rows)), logprobs_RT)


@torch.inference_mode()
def test_the_canary_is_no_text_that_bfloat16_garbles(embedded: Path) -> None:
    """Where engine and trainer compute in bfloat16, a publish must not take rounding for another model."""
    ids_1T = torch.tensor([[*CANARY_PROMPT, *CANARY_COMPLETION]])
    model = Qwen3VLForConditionalGeneration.from_pretrained(embedded, dtype=torch.float32).eval()
    exact, rounded = chosen(model, ids_1T), chosen(model.bfloat16(), ids_1T)
    difference = (rounded - exact)[0, -len(CANARY_COMPLETION) :].abs().mean()
    print(f"canary in bfloat16: {difference:.2g}")
    assert difference < MAX_CANARY_DIFFERENCE["bfloat16"] / 2


def test_it_reads_digits_that_it_never_saw(embedded: Path) -> None:
    model = Qwen3VLForConditionalGeneration.from_pretrained(embedded, dtype=torch.float32).eval()
    processor = Qwen3VLProcessor.from_pretrained(embedded)
    shares = [share_read(model, processor, split) for split in ("validation", "test")]
    print(f"held-out digits read: {shares[0]:.3f} of validation, {shares[1]:.3f} of test")
    assert min(shares) >= 0.95

"""Rows on CPU beside torch's own, and requests that come in pieces or in company."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from service.engine import cpu_scores
from service.engine.cpu_scores import score_args, score_completions_alone, top

pytestmark = pytest.mark.unit
HIDDEN, VOCABULARY = 8, 1280


@pytest.mark.parametrize("columns", [50, 1280, 1300, 151_936])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_largest_of_a_row_are_torchs(columns: int, k: int) -> None:
    values_RV = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns + k))
    values, places = top(values_RV, k)
    expected = values_RV.topk(k, dim=1)
    torch.testing.assert_close(values, expected.values, atol=0, rtol=0)
    torch.testing.assert_close(places, expected.indices, atol=0, rtol=0)


def test_the_largest_may_all_lie_in_one_block() -> None:
    values_RV = torch.zeros(2, 40 * cpu_scores.BLOCK)
    values_RV[0, 300:320] = torch.arange(1, 21).float()
    values_RV[1, -20:] = torch.arange(1, 21).float()
    places = top(values_RV, 20)[1]
    assert places.tolist() == [list(range(319, 299, -1)), list(range(5119, 5099, -1))]


@dataclass
class Runner:
    """What vLLM's runner has of a step: its requests, one after another."""

    requests: dict[str, Any]
    num_prompt_logprobs: dict[str, int]
    head_HV: torch.Tensor = field(default_factory=lambda: torch.randn(HIDDEN, VOCABULARY, generator=seeded(1)))

    def __post_init__(self) -> None:
        self.model = SimpleNamespace(compute_logits=lambda hidden_RH: hidden_RH @ self.head_HV)
        self.input_batch = SimpleNamespace(req_id_to_index={name: at for at, name in enumerate(self.requests)})

    def step(self, hidden: dict[str, torch.Tensor]) -> dict[str, Any]:
        """A step that computes the given rows of each request."""
        lengths = torch.tensor([0] + [len(hidden.get(name, ())) for name in self.requests])
        self.query_start_loc = SimpleNamespace(np=lengths.cumsum(0).numpy())
        rows = torch.cat([hidden[name] for name in self.requests if name in hidden])
        runner_class: Any = GPUModelRunner
        answers = runner_class._get_prompt_logprobs_dict(self, rows, {name: len(part) for name, part in hidden.items()})
        for name, part in hidden.items():
            self.requests[name].num_computed_tokens += len(part)
        return answers


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def request(ids: list[int], args: dict[str, Any] | None) -> SimpleNamespace:
    return SimpleNamespace(
        prompt_token_ids=ids,
        num_computed_tokens=0,
        in_progress_prompt_logprobs_cpu=None,
        sampling_params=SimpleNamespace(extra_args=args),
    )


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    # vLLM's own is for requests without our arguments.
    monkeypatch.setattr(GPUModelRunner, "_get_prompt_logprobs_dict", lambda *_: {})
    score_completions_alone()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("pieces", [[12], [3, 9], [7, 1, 4], [11, 1], [1] * 12])
@pytest.mark.parametrize("at_once", [2, 128])
def test_a_prompt_in_pieces_has_the_rows_of_its_completion(
    pieces: list[int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_scores, "ROWS_AT_ONCE", at_once)
    ids = torch.randint(VOCABULARY, (12,), generator=seeded(2)).tolist()
    hidden = {"likeliest": torch.randn(12, HIDDEN, generator=seeded(3))}
    hidden["ids"] = torch.randn(12, HIDDEN, generator=seeded(6))  # a mistaken row would be seen
    requested = torch.randint(VOCABULARY, (5, 4), generator=seeded(4)).tolist()
    runner = Runner(
        {"likeliest": request(ids, score_args(6, None)), "ids": request(ids, score_args(6, requested))},
        {"likeliest": 3, "ids": 4},
    )
    answers: dict[str, Any] = {}
    for likeliest, by_id in zip(hidden["likeliest"].split(pieces), hidden["ids"].split(pieces), strict=True):
        assert not answers
        answers = runner.step({"likeliest": likeliest, "ids": by_id})
    tokens = torch.tensor(ids[7:])[:, None]
    for name in hidden:
        # Row i predicts token i + 1: rows 6 to 10 are those of the last five tokens.
        logprobs_RV = (hidden[name][6:11] @ runner.head_HV).log_softmax(-1)
        columns = logprobs_RV.topk(3).indices if name == "likeliest" else torch.tensor(requested)
        expected = torch.cat((tokens, columns), dim=1)
        assert answers[name].logprob_token_ids.tolist() == expected.tolist()
        torch.testing.assert_close(answers[name].logprobs, logprobs_RV.gather(1, expected), atol=1e-5, rtol=0)
    assert runner.num_prompt_logprobs == {}
    assert all(entry.in_progress_prompt_logprobs_cpu is None for entry in runner.requests.values())


@pytest.mark.usefixtures("patched")
def test_a_request_that_waits_for_room_loses_nothing() -> None:
    ids = list(range(8))
    hidden = torch.randn(8, HIDDEN, generator=seeded(5))
    runner = Runner({"first": request(ids, score_args(3, None)), "second": request(ids, score_args(3, None))}, {})
    runner.num_prompt_logprobs |= {"first": 0, "second": 0}
    assert set(runner.step({"first": hidden})) == {"first"}
    assert runner.num_prompt_logprobs == {"second": 0}
    (answer,) = runner.step({"second": hidden}).values()
    torch.testing.assert_close(
        answer.logprobs, (hidden[3:7] @ runner.head_HV).log_softmax(-1).gather(1, torch.tensor([[4], [5], [6], [7]]))
    )

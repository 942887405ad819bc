"""The packed policy beside plain transformers and PEFT, which take one sequence at a time."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextMLP, Qwen3VLVisionModel

from adapters.errors import UserError
from service.media import encode_image
from tests.trainer.update.packs import BASE, BYTES, KINDS, inputs, noisy, prompt, random_rollout
from trainer.parts import Prompt, Rollout
from trainer.update import attention
from trainer.update.attention import Layout, block_mask
from trainer.update.packing import Pack, lay_out, pack
from trainer.update.policy import Policy, load_policy
from trainer.update.update import advantages_of

ADAPTER = "compared"
QuestionRollouts = list[tuple[Prompt, Rollout]]


@pytest.fixture(scope="module")
def reference(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Generator[nn.Module]:
    """PEFT's model with the adapter that `save` wrote; the policy has it as `ADAPTER`."""
    folder = tmp_path_factory.mktemp("adapter")
    noisy(policy, ADAPTER, 0)
    policy.adapters.save(ADAPTER, folder)
    base = Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    yield PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    policy.adapters.remove(ADAPTER)


def question_rollouts(*questions: tuple[str, int, Sequence[int]], seed: int = 0) -> QuestionRollouts:
    """Kind, number and the lengths of the completions, for each."""
    rng = np.random.default_rng(seed)
    pairs = [(prompt(kind, number), lengths) for kind, number, lengths in questions]
    return [(question, random_rollout(question, lengths, rng)) for question, lengths in pairs]


def loss(logprobs: Sequence[Tensor], advantages: Sequence[np.ndarray], tokens: int) -> Tensor:
    """Mean over tokens, so that gradients are of order 1."""
    return (torch.cat(list(logprobs)) * torch.from_numpy(np.concatenate(advantages))).sum() / tokens


def gradients(parameters: dict[str, Any]) -> dict[str, Tensor]:
    """Taken from where `backward` left them."""
    taken = {key: parameter.grad for key, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return taken


def packed(policy: Policy, packs: Sequence[Pack], adapter: str = ADAPTER) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = sum(len(row.targets_N) for row in packs)
    logprobs: list[Tensor] = []
    for row in packs:
        logprobs_N = policy.logprobs(adapter, row).chosen_NK[:, 0]
        loss([logprobs_N], [advantages_of(completion) for completion in row.completions], tokens).backward()
        logprobs.append(logprobs_N.detach())
    return torch.cat(logprobs), gradients(policy.adapters.parameters(adapter))


def distributions(reference: nn.Module, question: Prompt, ids_C: np.ndarray) -> Tensor:
    """Log-probabilities [C, V] of the whole sequence alone, with all the processor made of the prompt."""
    model_inputs = inputs(question)
    length = len(ids_C)
    del model_inputs["attention_mask"]
    model_inputs["input_ids"] = torch.cat([model_inputs["input_ids"], torch.from_numpy(ids_C)[None]], dim=1)
    model_inputs["mm_token_type_ids"] = nn.functional.pad(model_inputs["mm_token_type_ids"], (0, length))
    return reference(**model_inputs).logits[0, -length - 1 : -1].log_softmax(-1)


def chosen(reference: nn.Module, question: Prompt, ids_C: np.ndarray) -> Tensor:
    """Log-probabilities of these tokens themselves [C]."""
    return distributions(reference, question, ids_C).gather(-1, torch.from_numpy(ids_C)[:, None])[:, 0]


def separate(reference: nn.Module, rollouts: QuestionRollouts) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = sum(len(completion.ids_C) for _, rollout in rollouts for completion in rollout.completions)
    logprobs: list[Tensor] = []
    for question, rollout in rollouts:
        for completion in rollout.completions:
            logprobs_C = chosen(reference, question, completion.ids_C)
            loss([logprobs_C], [advantages_of(completion)], tokens).backward()
            logprobs.append(logprobs_C.detach())
    parameters = {key: parameter for key, parameter in reference.named_parameters() if parameter.requires_grad}
    return torch.cat(logprobs), {key.replace(".default", ""): grad for key, grad in gradients(parameters).items()}


def assert_near(
    measured: tuple[Tensor, dict[str, Tensor]], reference: tuple[Tensor, dict[str, Tensor]], rtol: float = 0.0
) -> None:
    torch.testing.assert_close(measured[0], reference[0], atol=1e-5, rtol=rtol)
    torch.testing.assert_close(measured[1], reference[1], atol=1e-5, rtol=0)
    gradient, expected = flat(measured[1]), flat(reference[1])
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def check(policy: Policy, reference: nn.Module, rollouts: QuestionRollouts, budget: int, packs: int) -> None:
    """Random tokens are unlikely ones: where a log-probability is -20, float32's neighbours are 2e-6 apart."""
    rows = pack([rollout for _, rollout in rollouts], budget)
    assert len(rows) == packs
    assert_near(packed(policy, rows), separate(reference, rollouts), rtol=2e-6)


def answered(reference: Any, kind: str, number: int, count: int) -> QuestionRollouts:
    """With what the model itself says."""
    question = prompt(kind, number)
    torch.manual_seed(0)
    said = reference.generate(**inputs(question), do_sample=True, num_return_sequences=count, max_new_tokens=40)
    end = reference.config.text_config.eos_token_id
    rows = [row[len(inputs(question)["input_ids"][0]) :].tolist() for row in said]
    answers = [row[: row.index(end) + 1] if end in row else row for row in rows]
    shape = random_rollout(question, [len(answer) for answer in answers], np.random.default_rng(0))
    pairs = zip(shape.completions, answers, strict=True)
    completions = [replace(completion, ids_C=np.array(ids)) for completion, ids in pairs]
    return [(question, shape.only(completions))]


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_answers_in_a_pack_are_separate_sequences(policy: Policy, reference: nn.Module, kind: str) -> None:
    rollouts = answered(reference, kind, 0, 4)
    rows = pack([rollout for _, rollout in rollouts], 4096)
    assert_near(packed(policy, rows), separate(reference, rollouts))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_is_separate_sequences(policy: Policy, reference: nn.Module, kind: str) -> None:
    check(policy, reference, question_rollouts((kind, 0, [5, 1, 12, 3])), 4096, 1)


@pytest.mark.parametrize("kind", ["text", "video"])
@pytest.mark.parametrize("lengths", [[7], [1], [1, 1, 1], [6, 6, 6], [40, 1]], ids=str)
def test_of_any_lengths(policy: Policy, reference: nn.Module, kind: str, lengths: list[int]) -> None:
    check(policy, reference, question_rollouts((kind, 1, lengths)), 4096, 1)


@pytest.mark.parametrize("kind", ["text", "image and video"])
def test_a_group_that_is_split_is_the_same(policy: Policy, reference: nn.Module, kind: str) -> None:
    rollouts = question_rollouts((kind, 0, [9, 8, 1, 10, 7]))
    check(policy, reference, rollouts, len(rollouts[0][1].ids_P) + 18, 2)


def test_a_budget_below_the_prompt_takes_completions_one_by_one(policy: Policy, reference: nn.Module) -> None:
    check(policy, reference, question_rollouts(("image", 0, [4, 2, 3])), 8, 3)


MIXED = [
    ("image", 1, [3, 8, 1]),
    ("text", 0, [5]),
    ("video and image", 0, [2, 2]),
    ("video", 1, [1]),
    ("text", 2, [6, 1, 4]),
    ("two images", 0, [7, 3]),
]


@pytest.mark.parametrize(("budget", "packs"), [(4096, 1), (128, 4), (64, 5)])
def test_groups_of_all_kinds_share_packs(policy: Policy, reference: nn.Module, budget: int, packs: int) -> None:
    check(policy, reference, question_rollouts(*MIXED), budget, packs)


def test_any_chosen_tokens_and_the_entropy(policy: Policy, reference: nn.Module) -> None:
    ((question, rollout),) = question_rollouts(("image", 0, [4, 2]))
    row = lay_out([rollout])
    chosen_NK = torch.from_numpy(np.random.default_rng(0).integers(0, BYTES, (len(row.targets_N), 5)))
    with torch.no_grad():
        scored = policy.logprobs(ADAPTER, row, chosen_NK)
        all_NV = torch.cat([distributions(reference, question, completion.ids_C) for completion in rollout.completions])
    torch.testing.assert_close(scored.chosen_NK, all_NV.gather(-1, chosen_NK), atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.entropy_N, -(all_NV.exp() * all_NV).sum(-1), atol=1e-5, rtol=0)


def test_no_adapter_is_the_base(policy: Policy, reference: Any) -> None:
    rollouts = question_rollouts(("image", 0, [4, 2]))
    with torch.no_grad(), reference.disable_adapter():
        expected = [
            chosen(reference, question, completion.ids_C)
            for question, rollout in rollouts
            for completion in rollout.completions
        ]
    found_N1 = policy.logprobs(None, lay_out([rollout for _, rollout in rollouts])).chosen_NK
    assert not found_N1.requires_grad
    torch.testing.assert_close(found_N1[:, 0], torch.cat(expected), atol=1e-5, rtol=0)


def counted(monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module]) -> list[bool]:
    """A list that grows with every call of a module of this kind: whether its gradient was recorded."""
    calls: list[bool] = []
    forward = kind.forward

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", call)
    return calls


def test_recomputed_layers_give_the_same_gradients(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pack([rollout for _, rollout in question_rollouts(*MIXED)], 128)
    again = load_policy(BASE, dtype="float32")
    again.recompute_layers()
    for model in (policy, again):
        noisy(model, "recomputed", 0)
    calls = counted(monkeypatch, Qwen3VLTextMLP)
    plain = packed(policy, rows, "recomputed")
    once = len(calls)
    recomputed = packed(again, rows, "recomputed")
    policy.adapters.remove("recomputed")
    assert len(calls) == 3 * once
    assert_near(recomputed, plain)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_compiled_layers_are_one_graph_for_all_adapters_and_lengths(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, but for the kernels and the backward pass, which flex attention has on CUDA alone."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    compiled = load_policy(BASE, dtype="float32")
    compiled.compile_layers("aot_eager")
    names = ("first", "second", "third")
    for model in (policy, compiled):
        for number, name in enumerate(names):
            noisy(model, name, number)
    rows = [lay_out([rollout for _, rollout in question_rollouts((kind, 0, lengths))]) for kind, lengths in
            (("text", (5, 9)), ("image", (7, 3, 12)), ("video", (4,)))]  # fmt: skip
    plain = [policy.measure(name, row) for row, name in zip(rows, names, strict=True)]
    monkeypatch.setattr(attention, "layout", lambda spans, device: Layout(block_mask=block_mask(spans, device)))
    compiled.measure(names[2], rows[0])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs
    for row, name, wanted in zip(rows, names, plain, strict=True):
        assert compiled.measure(name, row) == pytest.approx(wanted, abs=5e-5)
        policy.adapters.remove(name)
    assert counters["stats"]["unique_graphs"] == graphs


def test_bfloat16_is_near(policy: Policy, reference: nn.Module) -> None:
    rows = [lay_out([rollout for _, rollout in answered(reference, "text", 0, 4)])]
    half = load_policy(BASE, dtype="bfloat16")
    noisy(half, ADAPTER, 0)
    assert {parameter.dtype for parameter in half.adapters.parameters(ADAPTER).values()} == {torch.float32}
    (half_N, half_gradients), (full_N, full_gradients) = packed(half, rows), packed(policy, rows)
    assert half_N.dtype == torch.float32
    torch.testing.assert_close(half_N, full_N, atol=0.1, rtol=0)
    assert not torch.equal(half_N, full_N)
    assert nn.functional.cosine_similarity(flat(half_gradients), flat(full_gradients), dim=0) > 0.98


@pytest.fixture
def _fresh(policy: Policy) -> None:
    policy.vision.forget()


@pytest.mark.usefixtures("_fresh")
def test_the_tower_sees_a_prompt_once_and_without_gradient(
    policy: Policy, reference: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = (("image", 0, [9, 8, 3]), ("video", 0, [5, 5]), ("text", 0, [2]))
    rollouts = [rollout for _, rollout in question_rollouts(*questions)]
    calls = counted(monkeypatch, Qwen3VLVisionModel)
    rows = pack(rollouts, 40)
    assert len(rows) > 3
    for _ in range(2):
        packed(policy, rows)
    assert calls == [False, False]
    seen = policy.vision(rollouts[0])
    assert seen.features_MD is not None
    assert seen.deep_LMD is not None
    assert not seen.features_MD.requires_grad
    assert not seen.deep_LMD.requires_grad
    policy.vision.forget()
    policy.vision(rollouts[0])
    assert len(calls) == 3


@pytest.mark.usefixtures("_fresh")
def test_pictures_that_differ_are_seen_apart(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their prompts can be the same ids."""
    ((_, first),) = question_rollouts(("image", 0, [3]))
    size = policy.vision(first).is_media_P.sum() * 32
    black = encode_image(np.zeros((32, int(size), 3), np.uint8))
    second = replace(first, prompt=replace(first.prompt, images=(black,)))
    calls = counted(monkeypatch, Qwen3VLVisionModel)
    features_MD, other_MD = policy.vision(first).features_MD, policy.vision(second).features_MD
    assert len(calls) == 1
    assert features_MD is not None
    assert other_MD is not None
    assert features_MD.shape == other_MD.shape
    assert not torch.isclose(features_MD, other_MD).all()


def without_a_pad(kind: str) -> Rollout:
    ((_, rollout),) = question_rollouts((kind, 0, [3]))
    pads = np.flatnonzero(inputs(prompt(kind))["mm_token_type_ids"][0].numpy())
    return replace(rollout, ids_P=np.delete(rollout.ids_P, pads[0]))


def with_media_of(kind: str, media: str) -> Rollout:
    """A prompt of one kind with the files of another."""
    return replace(question_rollouts((kind, 0, [3]))[0][1], prompt=prompt(media))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: without_a_pad("image"), r"\d+ image tokens, the trainer's processor makes \d+;"),
        (lambda: without_a_pad("video"), r"\d+ video tokens, the trainer's processor makes \d+;"),
        (lambda: with_media_of("image", "text"), r"\d+ image tokens, the trainer's processor makes 0;"),
        (lambda: with_media_of("text", "image"), r"0 image tokens, the trainer's processor makes \d+;"),
        (lambda: with_media_of("image", "video"), r"\d+ image tokens, the trainer's processor makes 0;"),
        (lambda: with_media_of("image", "two images"), r"\d+ image tokens, the trainer's processor makes \d+;"),
    ],
    ids=["a pad less", "a video pad less", "no picture", "no pads", "another kind", "a picture more"],
)
def test_pads_that_do_not_fit_the_media_are_refused(policy: Policy, make: Callable[[], Rollout], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        policy.logprobs(None, lay_out([make()]))
    assert "the same base folder and media settings" in str(caught.value)
    assert "\n" not in str(caught.value)

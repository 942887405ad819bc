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
from tests.trainer.update.packs import BASE, BYTES, KINDS, group, inputs, noisy, prompt
from trainer.parts import Group, Prompt
from trainer.update import attention
from trainer.update.attention import Layout, block_mask
from trainer.update.packing import Pack, lay_out, pack
from trainer.update.policy import Policy, load_policy

ADAPTER = "compared"
Asked = list[tuple[Prompt, Group]]


@pytest.fixture(scope="module")
def reference(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Generator[nn.Module]:
    """PEFT's model with the adapter that `save` wrote; the policy has it as `ADAPTER`."""
    folder = tmp_path_factory.mktemp("adapter")
    noisy(policy, ADAPTER, 0)
    policy.adapters.save(ADAPTER, folder)
    base = Qwen3VLForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
    yield PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    policy.adapters.remove(ADAPTER)


def asked(*questions: tuple[str, int, Sequence[int]], seed: int = 0) -> Asked:
    """Kind, number and the lengths of the completions, for each."""
    rng = np.random.default_rng(seed)
    return [(prompt(kind, number), group(prompt(kind, number), lengths, rng)) for kind, number, lengths in questions]


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
    tokens = sum(len(one.targets_N) for one in packs)
    found: list[Tensor] = []
    for one in packs:
        logprobs_N = policy.logprobs(adapter, one).chosen_NK[:, 0]
        loss([logprobs_N], [target.advantages_C for target in one.targets], tokens).backward()
        found.append(logprobs_N.detach())
    return torch.cat(found), gradients(policy.adapters.parameters(adapter))


def distributions(reference: nn.Module, one: Prompt, ids_C: np.ndarray) -> Tensor:
    """Log-probabilities [C, V] of the whole sequence alone, with all the processor made of the prompt."""
    made = inputs(one)
    length = len(ids_C)
    del made["attention_mask"]
    made["input_ids"] = torch.cat([made["input_ids"], torch.from_numpy(ids_C)[None]], dim=1)
    made["mm_token_type_ids"] = nn.functional.pad(made["mm_token_type_ids"], (0, length))
    return reference(**made).logits[0, -length - 1 : -1].log_softmax(-1)


def separate(reference: nn.Module, groups: Asked) -> tuple[Tensor, dict[str, Tensor]]:
    tokens = sum(len(target.ids_C) for _, group in groups for target in group.targets)
    found: list[Tensor] = []
    for one, its_group in groups:
        for target in its_group.targets:
            ids_C1 = torch.from_numpy(target.ids_C)[:, None]
            logprobs_C = distributions(reference, one, target.ids_C).gather(-1, ids_C1)[:, 0]
            loss([logprobs_C], [target.advantages_C], tokens).backward()
            found.append(logprobs_C.detach())
    parameters = {key: parameter for key, parameter in reference.named_parameters() if parameter.requires_grad}
    return torch.cat(found), {key.replace(".default", ""): grad for key, grad in gradients(parameters).items()}


def assert_near(
    ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]], rtol: float = 0.0
) -> None:
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=rtol)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=0)
    mine, other = flat(ours[1]), flat(theirs[1])
    assert (mine - other).norm() < 1e-4 * other.norm()


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[key].flatten() for key in sorted(tensors)])


def check(policy: Policy, reference: nn.Module, groups: Asked, budget: int, packs: int) -> None:
    """Random tokens are unlikely ones: where a log-probability is -20, float32's neighbours are 2e-6 apart."""
    made = pack([group for _, group in groups], budget)
    assert len(made) == packs
    assert_near(packed(policy, made), separate(reference, groups), rtol=2e-6)


def answered(reference: Any, kind: str, number: int, count: int) -> Asked:
    """With what the model itself says."""
    one = prompt(kind, number)
    torch.manual_seed(0)
    said = reference.generate(**inputs(one), do_sample=True, num_return_sequences=count, max_new_tokens=40)
    end = reference.config.text_config.eos_token_id
    rows = [row[len(inputs(one)["input_ids"][0]) :].tolist() for row in said]
    answers = [row[: row.index(end) + 1] if end in row else row for row in rows]
    shape = group(one, [len(answer) for answer in answers], np.random.default_rng(0))
    targets = [replace(target, ids_C=np.array(ids)) for target, ids in zip(shape.targets, answers, strict=True)]
    return [(one, shape.only(targets))]


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_answers_in_a_pack_are_separate_sequences(policy: Policy, reference: nn.Module, kind: str) -> None:
    groups = answered(reference, kind, 0, 4)
    rows = pack([group for _, group in groups], 4096)
    assert_near(packed(policy, rows), separate(reference, groups))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pack_is_separate_sequences(policy: Policy, reference: nn.Module, kind: str) -> None:
    check(policy, reference, asked((kind, 0, [5, 1, 12, 3])), 4096, 1)


@pytest.mark.parametrize("kind", ["text", "video"])
@pytest.mark.parametrize("lengths", [[7], [1], [1, 1, 1], [6, 6, 6], [40, 1]], ids=str)
def test_of_any_lengths(policy: Policy, reference: nn.Module, kind: str, lengths: list[int]) -> None:
    check(policy, reference, asked((kind, 1, lengths)), 4096, 1)


@pytest.mark.parametrize("kind", ["text", "image and video"])
def test_a_group_that_is_split_is_the_same(policy: Policy, reference: nn.Module, kind: str) -> None:
    groups = asked((kind, 0, [9, 8, 1, 10, 7]))
    check(policy, reference, groups, len(groups[0][1].prompt_P) + 18, 2)


def test_a_budget_below_the_prompt_takes_completions_one_by_one(policy: Policy, reference: nn.Module) -> None:
    check(policy, reference, asked(("image", 0, [4, 2, 3])), 8, 3)


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
    check(policy, reference, asked(*MIXED), budget, packs)


def test_any_chosen_tokens_and_the_entropy(policy: Policy, reference: nn.Module) -> None:
    ((one, its_group),) = asked(("image", 0, [4, 2]))
    row = lay_out([its_group])
    chosen_NK = torch.from_numpy(np.random.default_rng(0).integers(0, BYTES, (len(row.targets_N), 5)))
    with torch.no_grad():
        found = policy.logprobs(ADAPTER, row, chosen_NK)
        all_NV = torch.cat([distributions(reference, one, target.ids_C) for target in its_group.targets])
    torch.testing.assert_close(found.chosen_NK, all_NV.gather(-1, chosen_NK), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.entropy_N, -(all_NV.exp() * all_NV).sum(-1), atol=1e-5, rtol=0)


def test_no_adapter_is_the_base(policy: Policy, reference: Any) -> None:
    groups = asked(("image", 0, [4, 2]))
    with torch.no_grad(), reference.disable_adapter():
        theirs = [
            distributions(reference, one, target.ids_C).gather(-1, torch.from_numpy(target.ids_C)[:, None])[:, 0]
            for one, its_group in groups
            for target in its_group.targets
        ]
    found_N1 = policy.logprobs(None, lay_out([group for _, group in groups])).chosen_NK
    assert not found_N1.requires_grad
    torch.testing.assert_close(found_N1[:, 0], torch.cat(theirs), atol=1e-5, rtol=0)


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
    rows = pack([group for _, group in asked(*MIXED)], 128)
    again = load_policy(BASE, dtype="float32")
    again.recompute_layers()
    for one in (policy, again):
        noisy(one, "recomputed", 0)
    calls = counted(monkeypatch, Qwen3VLTextMLP)
    kept = packed(policy, rows, "recomputed")
    once = len(calls)
    recomputed = packed(again, rows, "recomputed")
    policy.adapters.remove("recomputed")
    assert len(calls) == 3 * once
    assert_near(recomputed, kept)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_compiled_layers_are_one_graph_for_all_adapters_and_lengths(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA, but for the kernels and the backward pass, which flex attention has on CUDA alone."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    compiled = load_policy(BASE, dtype="float32")
    compiled.compile_layers("aot_eager")
    names = ("first", "second", "third")
    for one in (policy, compiled):
        for number, name in enumerate(names):
            noisy(one, name, number)
    rows = [lay_out([group for _, group in asked((kind, 0, lengths))]) for kind, lengths in
            (("text", (5, 9)), ("image", (7, 3, 12)), ("video", (4,)))]  # fmt: skip
    plain = [policy.measure(name, one) for one, name in zip(rows, names, strict=True)]
    monkeypatch.setattr(attention, "layout", lambda spans, device: Layout(block_mask=block_mask(spans, device)))
    compiled.measure(names[2], rows[0])
    graphs = counters["stats"]["unique_graphs"]
    assert graphs
    for one, name, wanted in zip(rows, names, plain, strict=True):
        assert compiled.measure(name, one) == pytest.approx(wanted, abs=5e-5)
        policy.adapters.remove(name)
    assert counters["stats"]["unique_graphs"] == graphs


def test_bfloat16_is_near(policy: Policy, reference: nn.Module) -> None:
    rows = [lay_out([group for _, group in answered(reference, "text", 0, 4)])]
    half = load_policy(BASE, dtype="bfloat16")
    noisy(half, ADAPTER, 0)
    assert {parameter.dtype for parameter in half.adapters.parameters(ADAPTER).values()} == {torch.float32}
    (ours_N, ours), (theirs_N, theirs) = packed(half, rows), packed(policy, rows)
    assert ours_N.dtype == torch.float32
    torch.testing.assert_close(ours_N, theirs_N, atol=0.1, rtol=0)
    assert not torch.equal(ours_N, theirs_N)
    assert nn.functional.cosine_similarity(flat(ours), flat(theirs), dim=0) > 0.98


@pytest.fixture
def _fresh(policy: Policy) -> None:
    policy.vision.forget()


@pytest.mark.usefixtures("_fresh")
def test_the_tower_sees_a_prompt_once_and_without_gradient(
    policy: Policy, reference: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [group for _, group in asked(("image", 0, [9, 8, 3]), ("video", 0, [5, 5]), ("text", 0, [2]))]
    calls = counted(monkeypatch, Qwen3VLVisionModel)
    rows = pack(groups, 40)
    assert len(rows) > 3
    for _ in range(2):
        packed(policy, rows)
    assert calls == [False, False]
    seen = policy.vision(groups[0])
    assert seen.features_MD is not None
    assert seen.deep_LMD is not None
    assert not seen.features_MD.requires_grad
    assert not seen.deep_LMD.requires_grad
    policy.vision.forget()
    policy.vision(groups[0])
    assert len(calls) == 3


@pytest.mark.usefixtures("_fresh")
def test_pictures_that_differ_are_seen_apart(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their prompts can be the same ids."""
    ((_, first),) = asked(("image", 0, [3]))
    size = policy.vision(first).is_media_P.sum() * 32
    other = replace(first, images=(encode_image(np.zeros((32, int(size), 3), np.uint8)),))
    calls = counted(monkeypatch, Qwen3VLVisionModel)
    mine, theirs = policy.vision(first).features_MD, policy.vision(other).features_MD
    assert len(calls) == 1
    assert mine is not None
    assert theirs is not None
    assert mine.shape == theirs.shape
    assert not torch.isclose(mine, theirs).all()


def without_a_pad(kind: str) -> Group:
    ((_, its_group),) = asked((kind, 0, [3]))
    pads = np.flatnonzero(inputs(prompt(kind))["mm_token_type_ids"][0].numpy())
    return replace(its_group, prompt_P=np.delete(its_group.prompt_P, pads[0]))


def with_media_of(kind: str, other: str) -> Group:
    """A prompt of one kind with the files of another."""
    return replace(asked((kind, 0, [3]))[0][1], images=prompt(other).images, videos=prompt(other).videos)


@pytest.mark.parametrize(
    ("make", "told"),
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
def test_pads_that_do_not_fit_the_media_are_refused(policy: Policy, make: Callable[[], Group], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        policy.logprobs(None, lay_out([make()]))
    assert "the same base folder and media settings" in str(caught.value)
    assert "\n" not in str(caught.value)

"""Learning from a teacher: the gradient in closed form, and how far a short loop brings a student."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import DynamicCache, Qwen3VLForConditionalGeneration

from tests.trainer.update import packs
from tests.trainer.update.gradients import difference, gradients_of, values
from trainer.miniature.model import VOCABULARY
from trainer.parts import Completion, LossTerm, Prompt, Rollout, TopK
from trainer.recipe import LossConfig
from trainer.rollout.advantages import teacher_advantages
from trainer.update.optim import Optimiser
from trainer.update.packing import lay_out
from trainer.update.update import update

pytestmark = pytest.mark.reference


def rollouts_of(*shapes):
    rng = np.random.default_rng(0)
    prompts = [packs.prompt(kind, number) for number, (kind, _) in enumerate(shapes)]
    return [packs.random_rollout(prompt, lengths, rng) for prompt, (_, lengths) in zip(prompts, shapes, strict=True)]


def peft_logprobs(policy, adapter, folder):
    """PEFT's model with an adapter: log-probabilities of one completion alone, or of tokens chosen in its places."""
    folder.mkdir()
    policy.adapters.save(adapter, folder)
    base = Qwen3VLForConditionalGeneration.from_pretrained(packs.BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder, is_trainable=True).eval()

    def logprobs(prompt, ids_C, chosen_CK=None):
        inputs = packs.inputs(prompt)
        del inputs["attention_mask"]
        ids_1C = torch.from_numpy(ids_C)[None]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids_1C], dim=1)
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(ids_C)))
        logits_1CV = model(**inputs).logits[:, -len(ids_C) - 1 : -1]
        logprobs_CV = logits_1CV[0].log_softmax(-1)
        if chosen_CK is None:
            return logprobs_CV.gather(-1, ids_1C[0, :, None])[:, 0]
        return logprobs_CV.gather(-1, torch.from_numpy(chosen_CK))

    return model, logprobs


@pytest.mark.parametrize("kind", ["text", "image"])
def test_distillation_has_its_closed_form(policy, noisy, kind, tmp_path):
    """- beta mean_y 1/|y| sum_t clamp(log teacher - log student) grad log student, all by transformers and PEFT."""
    student, teacher = noisy(0), noisy(1, alpha=64)
    lengths, beta, clamp = [[5, 1, 9], [12, 3, 7]], 0.7, 1.0
    model, student_logprobs = peft_logprobs(policy, student, tmp_path / "student")
    _, teacher_logprobs = peft_logprobs(policy, teacher, tmp_path / "teacher")
    rollouts, deltas, total = rollouts_of(*((kind, row) for row in lengths)), [], torch.tensor(0.0)
    for number, rollout in enumerate(rollouts):
        for completion in rollout.completions:
            student_C = student_logprobs(packs.prompt(kind, number), completion.ids_C)
            with torch.no_grad():
                deltas.append(teacher_logprobs(packs.prompt(kind, number), completion.ids_C) - student_C)
            total = total - beta / 6 * (deltas[-1].clamp(-clamp, clamp) * student_C).mean()
    total.backward()
    named = model.named_parameters()
    expected = {key.replace(".default", ""): p.grad for key, p in named if p.requires_grad}
    assert any((delta.abs() > clamp).any() for delta in deltas)
    assert any((delta.abs() < clamp).any() for delta in deltas)

    term = distilled(policy, student, teacher, rollouts, beta=beta, clamp=clamp)
    gradients, _ = gradients_of(policy, student, [term])
    assert difference(gradients, expected) < 1e-5


@pytest.mark.parametrize("kind", ["text", "image"])
def test_bins_have_their_closed_form(policy, noisy, kind, tmp_path):
    """weight mean_y 1/|y| sum_t w KL, the importance w as for advantages, which these completions have too."""
    student, weight = noisy(0), 0.5
    model, student_logprobs = peft_logprobs(policy, student, tmp_path / "student")
    rng, total, importances = np.random.default_rng(0), torch.tensor(0.0), []
    rollouts = [packs.random_rollout(packs.prompt(kind, n), [6, 1, 8], rng, top_k=3, beta=weight) for n in range(2)]
    own_N = np.array(policy.measure(student, lay_out(rollouts)), "f4")
    changes = [{"logprobs_C": own_C + rng.normal(0, 0.7, len(own_C)).astype("f4")}
               for own_C in _split(own_N, lay_out(rollouts))]  # fmt: skip
    rollouts = _with(rollouts, lay_out(rollouts), changes)
    for number, rollout in enumerate(rollouts):
        for completion in rollout.completions:
            assert completion.top_k is not None
            chosen = np.concatenate([completion.ids_C[:, None], completion.top_k.ids_Ck], axis=1)
            scored = student_logprobs(packs.prompt(kind, number), completion.ids_C, chosen)
            student_C, student_Ck = scored[:, 0], scored[:, 1:].double()
            teacher_Ck = torch.from_numpy(completion.top_k.logprobs_Ck).double()
            bins_S, bins_T = (torch.cat([rows.exp(), 1 - rows.exp().sum(-1, keepdim=True)], -1)
                              for rows in (student_Ck, teacher_Ck))  # fmt: skip
            kl = (bins_S * (bins_S / bins_T).log()).sum(-1)
            w = (student_C.detach() - torch.from_numpy(completion.logprobs_C)).exp().clamp(max=2)
            importances += w.tolist()
            total = total + (w * (weight * kl - torch.from_numpy(completion.advantages_C) * student_C)).mean() / 6
    total.backward()
    expected = {key.replace(".default", ""): p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert min(importances) < 0.7
    assert max(importances) == 2
    gradients, done = gradients_of(policy, student, [LossTerm("teacher", tuple(rollouts))])
    assert difference(gradients, expected) < 1e-5
    assert done.metrics["teacher/kl"] > 0


def distilled(policy, student, teacher, rollouts, **settings):
    """A teacher's term as a run makes it: both log-probabilities from one source."""
    row = lay_out(rollouts)
    student_scores, teacher_scores = (
        _split(np.array(policy.measure(name, row), "f4"), row) for name in (student, teacher)
    )
    changes = [
        {"advantages_C": teacher_advantages(teacher_C - student_C, **settings), "logprobs_C": student_C}
        for teacher_C, student_C in zip(teacher_scores, student_scores, strict=True)
    ]
    return LossTerm("teacher", tuple(_with(rollouts, row, changes)))


def test_a_branch_that_teaches_itself_does_not_move(policy, noisy):
    student = noisy(0)
    term = distilled(policy, student, student, rollouts_of(("text", [5, 9]), ("image", [7, 2])), beta=1.0, clamp=10)
    optimiser = Optimiser(policy.adapters.parameters(student), lr=1e-3)
    before = values(policy, student)
    done = update(policy, student, optimiser, [term], loss=LossConfig(), budget=4096)
    assert done.metrics["teacher/grad_norm"] == 0
    assert optimiser.num_updates == 1
    assert difference(values(policy, student), before) == 0


RANK, ALPHA = 16, 128
NUM_PROMPTS, MAX_TOKENS = 32, 4
"""Prompts of random bytes: the base is unsure what follows them."""
STEPS, BATCH, SAMPLES, LR = 20, 12, 4, 7e-4


@pytest.fixture(scope="module")
def twin():
    """The base once more, for sampling with a cache."""
    return Qwen3VLForConditionalGeneration.from_pretrained(packs.BASE, dtype=torch.float32).requires_grad_(False).eval()


@pytest.fixture
def merged(policy, twin):
    """The twin with an adapter's weights added to its own."""
    language = twin.model.language_model
    weights = {key: parameter.clone() for key, parameter in language.named_parameters()}

    def merge(adapter):
        factors = values(policy, adapter)
        for key, down_rI in factors.items():
            if ".lora_A." in key:
                name = key.partition("language_model.")[2].replace(".lora_A", "")
                up_Or = factors[key.replace(".lora_A.", ".lora_B.")]
                language.get_parameter(name).copy_(weights[name] + ALPHA / RANK * up_Or @ down_rI)
        return twin

    yield merge
    for key, parameter in language.named_parameters():
        parameter.copy_(weights[key])


@torch.no_grad()
def sampled_rollouts(model, prompts_BP, samples, generator):
    """The model's own completions at temperature 1, with their log-probabilities."""
    language, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    ids_RT, (B, P) = torch.from_numpy(prompts_BP), prompts_BP.shape
    rows: list[list[tuple[int, float]]] = [[] for _ in range(B * samples)]
    open_rows = set(range(len(rows)))
    for position in range(P, P + MAX_TOKENS):
        positions_3RT = torch.arange(position - ids_RT.shape[1], position).expand(3, len(ids_RT), -1)
        hidden = language(input_ids=ids_RT, position_ids=positions_3RT, past_key_values=cache, use_cache=True)
        logprobs_RV = model.lm_head(hidden.last_hidden_state[:, -1]).log_softmax(-1)
        if position == P:
            cache.batch_repeat_interleave(samples)
            logprobs_RV = logprobs_RV.repeat_interleave(samples, dim=0)
        ids_RT = torch.multinomial(logprobs_RV.exp(), 1, generator=generator)
        for row in sorted(open_rows):
            rows[row].append((int(ids_RT[row]), float(logprobs_RV[row, ids_RT[row]])))
        open_rows -= {row for row in open_rows if rows[row][-1][0] == model.config.text_config.eos_token_id}
    completions = [_completion(row) for row in rows]
    groups = [tuple(completions[first : first + samples]) for first in range(0, len(completions), samples)]
    prompt = Prompt("bytes", packs.CAPABILITY, (), "")
    return [Rollout(prompt, ids_P, group) for ids_P, group in zip(prompts_BP, groups, strict=True)]


def _completion(row):
    ids, logprobs = zip(*row, strict=True)
    return Completion(np.array(ids), np.array(logprobs, "f4"), advantages_C=np.zeros(len(ids), "f4"))


@torch.no_grad()
def whole_logprobs(policy, adapter, rollouts):
    """Log-probabilities of the whole vocabulary, at every token of the completions [N, V]."""
    row = lay_out(rollouts)
    every_NV = torch.arange(VOCABULARY).expand(len(row.targets_N), -1)
    return policy.logprobs(adapter, row, every_NV).chosen_NK


def divergence(policy, student, teacher, rollouts):
    student_NV, teacher_NV = (whole_logprobs(policy, adapter, rollouts) for adapter in (student, teacher))
    return (student_NV.exp() * (student_NV - teacher_NV)).sum(-1).mean().item()


def sampled(policy, teacher, rollouts):
    """The teacher's word on each sampled token."""
    row = lay_out(rollouts)
    teacher_N = np.array(policy.measure(teacher, row), "f4")
    return _with(rollouts, row, [
        {"advantages_C": teacher_advantages(teacher_C - completion.logprobs_C, beta=1.0, clamp=10.0)}
        for completion, teacher_C in zip(row.completions, _split(teacher_N, row), strict=True)
    ])  # fmt: skip


def binned(policy, teacher, rollouts):
    """The teacher's ten likeliest tokens in each place."""
    row = lay_out(rollouts)
    top = whole_logprobs(policy, teacher, rollouts).topk(10)
    ids, logprobs = (_split(values_Nk.numpy(), row) for values_Nk in (top.indices, top.values))
    return _with(rollouts, row, [{"top_k": TopK(*pair, beta=1.0)} for pair in zip(ids, logprobs, strict=True)])


def _split(rows_N, row):
    return np.split(rows_N, np.cumsum([len(completion.ids_C) for completion in row.completions])[:-1])


def _with(rollouts, row, changes):
    pairs = zip(row.completions, changes, strict=True)
    completions = iter([replace(completion, **change) for completion, change in pairs])
    return [rollout.only([next(completions) for _ in rollout.completions]) for rollout in rollouts]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("signal", [sampled, binned])
def test_twenty_updates_halve_the_divergence(policy, noisy, merged, signal, seed):
    """On-policy from the base, towards an adapter with another B. The whole divergence, at the student's own tokens."""
    teacher, student = noisy(100 + seed, rank=RANK, alpha=ALPHA), noisy(100 + seed, rank=RANK, alpha=ALPHA)
    for key, parameter in policy.adapters.parameters(student).items():
        if ".lora_B." in key:
            parameter.data.zero_()
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    prompts_BP = np.random.default_rng(9).integers(0, packs.BYTES, (NUM_PROMPTS, 8))
    optimiser = Optimiser(policy.adapters.parameters(student), lr=LR)

    def measured():
        completions = sampled_rollouts(merged(student), prompts_BP, 2, torch.Generator().manual_seed(0))
        return divergence(policy, student, teacher, completions)

    before = measured()
    for _ in range(STEPS):
        chosen = rng.permutation(NUM_PROMPTS)[:BATCH]
        rollouts = sampled_rollouts(merged(student), prompts_BP[chosen], SAMPLES, generator)
        term = LossTerm("teacher", tuple(signal(policy, teacher, rollouts)))
        done = update(policy, student, optimiser, [term], loss=LossConfig(), budget=4096)
        assert done.skipped is None
        assert done.metrics["teacher/mismatch"] < 1e-4
    after = measured()
    assert before > 0.5
    assert after < before / 2

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
from trainer.parts import Group, LossTerm, TopK, TrainingSample
from trainer.recipe import LossConfig
from trainer.rollout.advantages import teacher_advantages
from trainer.update.optim import Optimiser
from trainer.update.packing import lay_out
from trainer.update.update import update

pytestmark = pytest.mark.reference


def groups_of(*shapes):
    rng = np.random.default_rng(0)
    return [packs.group(packs.prompt(kind, number), lengths, rng) for number, (kind, lengths) in enumerate(shapes)]


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
    groups, deltas, total = groups_of(*((kind, row) for row in lengths)), [], 0.0
    for number, group in enumerate(groups):
        for target in group.targets:
            own = student_logprobs(packs.prompt(kind, number), target.ids_C)
            with torch.no_grad():
                deltas.append(teacher_logprobs(packs.prompt(kind, number), target.ids_C) - own)
            total = total - beta / 6 * (deltas[-1].clamp(-clamp, clamp) * own).mean()
    total.backward()
    named = model.named_parameters()
    expected = {key.replace(".default", ""): p.grad for key, p in named if p.requires_grad}
    assert any((delta.abs() > clamp).any() for delta in deltas)
    assert any((delta.abs() < clamp).any() for delta in deltas)

    found, _ = gradients_of(policy, student, [distilled(policy, student, teacher, groups, beta=beta, clamp=clamp)])
    assert difference(found, expected) < 1e-5


@pytest.mark.parametrize("kind", ["text", "image"])
def test_bins_have_their_closed_form(policy, noisy, kind, tmp_path):
    """weight mean_y 1/|y| sum_t w KL, the importance w as for advantages, which these completions have too."""
    student, weight = noisy(0), 0.5
    model, student_logprobs = peft_logprobs(policy, student, tmp_path / "student")
    rng, total, importances = np.random.default_rng(0), 0.0, []
    groups = [packs.group(packs.prompt(kind, n), [6, 1, 8], rng, top_k=3, weight=weight) for n in range(2)]
    own_N = np.array(policy.measure(student, lay_out(groups)), "f4")
    changes = [{"engine_logprobs_C": own_C + rng.normal(0, 0.7, len(own_C)).astype("f4")}
               for own_C in _split(own_N, lay_out(groups))]  # fmt: skip
    groups = _with(groups, lay_out(groups), changes)
    for number, group in enumerate(groups):
        for target in group.targets:
            chosen = np.concatenate([target.ids_C[:, None], target.bins.ids_Ck], axis=1)
            scored = student_logprobs(packs.prompt(kind, number), target.ids_C, chosen)
            own, student_Ck = scored[:, 0], scored[:, 1:].double()
            teacher_Ck = torch.from_numpy(target.bins.logprobs_Ck).double()
            bins_S, bins_T = (torch.cat([rows.exp(), 1 - rows.exp().sum(-1, keepdim=True)], -1)
                              for rows in (student_Ck, teacher_Ck))  # fmt: skip
            kl = (bins_S * (bins_S / bins_T).log()).sum(-1)
            w = (own.detach() - torch.from_numpy(target.engine_logprobs_C)).exp().clamp(max=2)
            importances += w.tolist()
            total = total + (w * (weight * kl - torch.from_numpy(target.advantages_C) * own)).mean() / 6
    total.backward()
    expected = {key.replace(".default", ""): p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert min(importances) < 0.7
    assert max(importances) == 2
    found, done = gradients_of(policy, student, [LossTerm("teacher", tuple(groups))])
    assert difference(found, expected) < 1e-5
    assert done.metrics["teacher/kl"] > 0


def distilled(policy, student, teacher, groups, **settings):
    """A teacher's part as a run makes it: both log-probabilities from one source."""
    row = lay_out(groups)
    cuts = np.cumsum([len(target.ids_C) for target in row.targets])[:-1]
    own, theirs = (np.split(np.array(policy.measure(name, row), "f4"), cuts) for name in (student, teacher))
    targets = iter(
        replace(target, advantages_C=teacher_advantages(t_C, s_C, **settings), engine_logprobs_C=s_C)
        for target, t_C, s_C in zip(row.targets, theirs, own, strict=True)
    )
    return LossTerm("teacher", tuple(group.only([next(targets) for _ in group.targets]) for group in groups))


def test_a_branch_that_teaches_itself_does_not_move(policy, noisy):
    student = noisy(0)
    part = distilled(policy, student, student, groups_of(("text", [5, 9]), ("image", [7, 2])), beta=1.0, clamp=10)
    optimiser = Optimiser(policy.adapters.parameters(student), lr=1e-3)
    before = values(policy, student)
    done = update(policy, student, optimiser, [part], loss=LossConfig(), budget=4096)
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
    own = {key: parameter.clone() for key, parameter in language.named_parameters()}

    def merge(adapter):
        factors = values(policy, adapter)
        for key, down_rI in factors.items():
            if ".lora_A." in key:
                name = key.partition("language_model.")[2].replace(".lora_A", "")
                up_Or = factors[key.replace(".lora_A.", ".lora_B.")]
                language.get_parameter(name).copy_(own[name] + ALPHA / RANK * up_Or @ down_rI)
        return twin

    yield merge
    for key, parameter in language.named_parameters():
        parameter.copy_(own[key])


@torch.no_grad()
def rollouts(model, prompts_BP, samples, generator):
    """The model's own completions at temperature 1, with their log-probabilities."""
    language, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    ids_RT, (B, P) = torch.from_numpy(prompts_BP), prompts_BP.shape
    rows: list[list[tuple[int, float]]] = [[] for _ in range(B * samples)]
    open_rows = set(range(len(rows)))
    for place in range(P, P + MAX_TOKENS):
        positions_3RT = torch.arange(place - ids_RT.shape[1], place).expand(3, len(ids_RT), -1)
        hidden = language(input_ids=ids_RT, position_ids=positions_3RT, past_key_values=cache, use_cache=True)
        logprobs_RV = model.lm_head(hidden.last_hidden_state[:, -1]).log_softmax(-1)
        if place == P:
            cache.batch_repeat_interleave(samples)
            logprobs_RV = logprobs_RV.repeat_interleave(samples, dim=0)
        ids_RT = torch.multinomial(logprobs_RV.exp(), 1, generator=generator)
        for row in sorted(open_rows):
            rows[row].append((int(ids_RT[row]), float(logprobs_RV[row, ids_RT[row]])))
        open_rows -= {row for row in open_rows if rows[row][-1][0] == model.config.text_config.eos_token_id}
    targets = [_target(row) for row in rows]
    return [Group(prompt_P, (), (), tuple(targets[number * samples : (number + 1) * samples]))
            for number, prompt_P in enumerate(prompts_BP)]  # fmt: skip


def _target(row):
    ids, logprobs = zip(*row, strict=True)
    return TrainingSample(np.array(ids), np.zeros(len(ids), "f4"), np.array(logprobs, "f4"))


@torch.no_grad()
def whole_logprobs(policy, adapter, groups):
    """Of the whole vocabulary, at every token of the completions [N, V]."""
    row = lay_out(groups)
    every_NV = torch.arange(VOCABULARY).expand(len(row.targets_N), -1)
    return policy.logprobs(adapter, row, every_NV).chosen_NK


def divergence(policy, student, teacher, groups):
    student_NV, teacher_NV = (whole_logprobs(policy, adapter, groups) for adapter in (student, teacher))
    return (student_NV.exp() * (student_NV - teacher_NV)).sum(-1).mean().item()


def sampled(policy, teacher, groups):
    """The teacher's word on each sampled token."""
    row = lay_out(groups)
    theirs = np.array(policy.measure(teacher, row), "f4")
    return _with(groups, row, [
        {"advantages_C": teacher_advantages(teacher_C, target.engine_logprobs_C, beta=1.0, clamp=10.0)}
        for target, teacher_C in zip(row.targets, _split(theirs, row), strict=True)
    ])  # fmt: skip


def binned(policy, teacher, groups):
    """The teacher's ten likeliest tokens in each place."""
    row = lay_out(groups)
    top = whole_logprobs(policy, teacher, groups).topk(10)
    ids, logprobs = (_split(values_Nk.numpy(), row) for values_Nk in (top.indices, top.values))
    return _with(groups, row, [{"bins": TopK(*one, weight=1.0)} for one in zip(ids, logprobs, strict=True)])


def _split(rows_N, row):
    return np.split(rows_N, np.cumsum([len(target.ids_C) for target in row.targets])[:-1])


def _with(groups, row, changes):
    targets = iter(replace(target, **change) for target, change in zip(row.targets, changes, strict=True))
    return [group.only([next(targets) for _ in group.targets]) for group in groups]


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
        own = rollouts(merged(student), prompts_BP, 2, torch.Generator().manual_seed(0))
        return divergence(policy, student, teacher, own)

    before = measured()
    for _ in range(STEPS):
        chosen = rng.permutation(NUM_PROMPTS)[:BATCH]
        groups = rollouts(merged(student), prompts_BP[chosen], SAMPLES, generator)
        part = LossTerm("teacher", tuple(signal(policy, teacher, groups)))
        done = update(policy, student, optimiser, [part], loss=LossConfig(), budget=4096)
        assert done.skipped is None
        assert done.metrics["teacher/mismatch"] < 1e-4
    after = measured()
    assert before > 0.5
    assert after < before / 2

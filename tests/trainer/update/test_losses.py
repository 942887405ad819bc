import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.update.losses import binned_reverse_kl, surrogate, token_weights

CLIP = {"eps_low": 0.2, "eps_high": 0.28}


def logprobs(*shape, seed=0, dtype=torch.float64):
    """Whole distributions."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=dtype)).log_softmax(-1)


def likeliest(student_NV, teacher_NV, k):
    ids_Nk = teacher_NV.topk(k).indices
    return student_NV.gather(-1, ids_Nk), teacher_NV.gather(-1, ids_Nk)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.27, 2.0, 2.54, 2.54),
        (1.29, 2.0, 2.56, 0.0),  # good, and likely enough already
        (1.29, -2.0, -2.58, -2.58),  # bad, and likelier than before
        (0.79, -2.0, -1.6, 0.0),  # bad, and unlikely enough already
        (0.79, 2.0, 1.58, 1.58),
        (0.81, -2.0, -1.62, -1.62),
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_ends_the_slope_where_enough_was_done(ratio, advantage, objective, slope):
    """The slope is by the log-probability: d rho / d lp = rho."""
    logprobs_N = torch.tensor([-2.0 + math.log(ratio)], requires_grad=True)
    old_N = torch.tensor([-2.0])
    result = surrogate(logprobs_N, old_N, old_N, torch.tensor([advantage]), **CLIP, importance_cap=2.0)
    (gradient,) = torch.autograd.grad(result.loss_N.sum(), logprobs_N)
    assert result.loss_N.item() == pytest.approx(-objective, rel=1e-5)
    assert gradient.item() == pytest.approx(-slope, rel=1e-5)
    assert result.ratio_N.item() == pytest.approx(ratio, rel=1e-5)
    assert result.is_clipped_N.item() == (slope == 0 and advantage != 0)


def test_one_update_a_batch_has_the_gradient_of_the_weighted_log_probability():
    logprobs_N = logprobs(8)[:5].requires_grad_()
    engine_N, advantages_N = torch.linspace(-4, -1, 5), torch.linspace(-1, 1, 5)
    result = surrogate(logprobs_N, logprobs_N.detach(), engine_N, advantages_N, **CLIP, importance_cap=2.0)
    (gradient_N,) = torch.autograd.grad(result.loss_N.sum(), logprobs_N)
    expected_N = -(logprobs_N.detach() - engine_N).exp().clamp(max=2) * advantages_N
    torch.testing.assert_close(gradient_N, expected_N)
    assert not result.is_clipped_N.any()


def test_tokens_likelier_to_the_trainer_count_for_more_up_to_a_cap():
    old_N = torch.tensor([-2.0, -2.0, -2.0, -2.0])
    engine_N = torch.tensor([-2.0, -2.5, -9.0, -1.0])
    weighted = surrogate(old_N, old_N, engine_N, torch.ones(4), **CLIP, importance_cap=2.0)
    assert weighted.importance_N.tolist() == pytest.approx([1, math.exp(0.5), 2, math.exp(-1)])
    assert weighted.loss_N.tolist() == pytest.approx([-1, -math.exp(0.5), -2, -math.exp(-1)])
    plain = surrogate(old_N, old_N, engine_N, torch.ones(4), **CLIP, importance_cap=None)
    assert plain.importance_N.tolist() == [1, 1, 1, 1]
    assert plain.loss_N.tolist() == [-1, -1, -1, -1]


def test_the_clip_is_of_the_ratio_not_of_the_importance():
    """An importance of 2 is outside the clip's range and clips nothing."""
    logprobs_N = torch.tensor([-2.0], requires_grad=True)
    old_N, engine_N = torch.tensor([-2.0]), torch.tensor([-9.0])
    result = surrogate(logprobs_N, old_N, engine_N, torch.ones(1), **CLIP, importance_cap=2.0)
    (gradient,) = torch.autograd.grad(result.loss_N.sum(), logprobs_N)
    assert gradient.item() == -2


@pytest.mark.parametrize("k", [1, 2, 10, 20])
def test_bins_have_the_exact_divergence_of_what_they_tell_apart(k):
    student_NV, teacher_NV = logprobs(20, 50), logprobs(20, 50, seed=1)
    student_Nk, teacher_Nk = likeliest(student_NV, teacher_NV, k)
    bins_S, bins_T = (torch.cat([rows.exp(), 1 - rows.exp().sum(-1, keepdim=True)], -1)
                      for rows in (student_Nk, teacher_Nk))  # fmt: skip
    expected_N = (bins_S * (bins_S / bins_T).log()).sum(-1)
    torch.testing.assert_close(binned_reverse_kl(student_Nk, teacher_Nk), expected_N)


def test_bins_of_the_whole_vocabulary_have_the_whole_divergence():
    student_NV, teacher_NV = logprobs(20, 50), logprobs(20, 50, seed=1)
    whole_N = (student_NV.exp() * (student_NV - teacher_NV)).sum(-1)
    found_N = binned_reverse_kl(*likeliest(student_NV, teacher_NV, 50))
    torch.testing.assert_close(found_N, whole_N, rtol=0, atol=1e-9)


def test_more_bins_tell_more_apart():
    """Never more than the whole divergence, never less than 0."""
    student_NV, teacher_NV = logprobs(20, 50), logprobs(20, 50, seed=1)
    by_k = torch.stack([binned_reverse_kl(*likeliest(student_NV, teacher_NV, k)) for k in (1, 3, 10, 30, 50)])
    assert (by_k.diff(dim=0) >= -1e-9).all()
    assert (by_k >= -1e-9).all()
    assert (by_k[2] > 0.1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_distributions_do_not_diverge(dtype):
    rows_NV = logprobs(20, 50, dtype=dtype)
    student_Nk = rows_NV.topk(10).values.requires_grad_()
    kl_N = binned_reverse_kl(student_Nk, student_Nk.detach().clone())
    assert kl_N.tolist() == [0.0] * 20
    (gradient_Nk,) = torch.autograd.grad(kl_N.sum(), student_Nk)
    assert gradient_Nk.abs().max() < 1e-6


@pytest.mark.parametrize("k", [1, 10])
def test_the_gradient_of_bins_is_that_of_finite_differences(k):
    """Through the logits: log-probabilities alone cannot be moved one by one."""
    teacher_NV, logits_NV = logprobs(4, 30, seed=1), logprobs(4, 30).requires_grad_()
    ids_Nk = teacher_NV.topk(k).indices

    def divergence(logits_NV):
        student_Nk = logits_NV.log_softmax(-1).gather(-1, ids_Nk)
        return binned_reverse_kl(student_Nk, teacher_NV.gather(-1, ids_Nk))

    assert torch.autograd.gradcheck(divergence, logits_NV)


def test_bins_that_leave_nothing_over_are_numbers():
    """Ten float32 probabilities can sum to more than 1, and a student can be sure of one token."""
    sure_Nk = torch.tensor([[0.0, -20.0], [-1e-8, -18.0], [-0.6931471, -0.6931471], [1e-7, -150.0]])
    for teacher_Nk in (sure_Nk, sure_Nk.flip(0), sure_Nk.flip(1)):
        student_Nk = sure_Nk.clone().requires_grad_()
        kl_N = binned_reverse_kl(student_Nk, teacher_Nk)
        (gradient_Nk,) = torch.autograd.grad(kl_N.sum(), student_Nk)
        assert kl_N.isfinite().all()
        assert gradient_Nk.isfinite().all()


LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=20)


@given(lengths=LENGTHS)
def test_every_sequence_weighs_the_same_or_every_token(lengths):
    by_sequence_N = token_weights(lengths, num_sequences=len(lengths), num_tokens=sum(lengths), normalise="sequence")
    by_token_N = token_weights(lengths, num_sequences=len(lengths), num_tokens=sum(lengths), normalise="token")
    assert len(by_sequence_N) == len(by_token_N) == sum(lengths)
    assert by_sequence_N.sum().item() == pytest.approx(1, rel=1e-5)
    assert by_token_N.sum().item() == pytest.approx(1, rel=1e-5)
    assert len(set(by_token_N.tolist())) == 1
    sums = [rows.sum().item() for rows in by_sequence_N.split(lengths)]
    assert sums == pytest.approx([1 / len(lengths)] * len(lengths), rel=1e-5)


def test_some_sequences_of_a_term_have_its_denominators():
    assert token_weights([2, 1], num_sequences=5, num_tokens=40, normalise="token").tolist() == pytest.approx(
        [1 / 40] * 3
    )
    result = token_weights([2, 1], num_sequences=5, num_tokens=40, normalise="sequence").tolist()
    assert result == pytest.approx([1 / 10, 1 / 10, 1 / 5])

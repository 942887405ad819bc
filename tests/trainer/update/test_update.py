"""One training step, from terms to an adapter: denominators, terms, guards. Equality with TRL is in `test_trl`."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapters.errors import UserError
from tests.trainer.update import packs
from tests.trainer.update.gradients import difference, gradients_of, largest, observer, values
from trainer.parts import LossTerm
from trainer.recipe import LossConfig
from trainer.update.optim import Optimiser
from trainer.update.packing import pack
from trainer.update.update import LEAST_BUDGET, update

ROUNDING = 5e-6
"""As a share of the largest value, between sums in another order."""
NORMALISE = pytest.mark.parametrize("normalise", ["sequence", "token"])


@pytest.fixture
def adapter(noisy):
    return noisy()


def rollouts_of(*shapes, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return [packs.random_rollout(packs.prompt(kind, number), lengths, rng, **settings)
            for number, (kind, lengths) in enumerate(shapes)]  # fmt: skip


@pytest.fixture(scope="module")
def native():
    shapes = ("text", [5, 90, 2, 70]), ("image", [1, 80, 27]), ("text", [20, 3, 95])
    return LossTerm("native", tuple(rollouts_of(*shapes)))


@pytest.fixture(scope="module")
def small():
    return LossTerm("native", tuple(rollouts_of(("text", [5, 9, 2]), ("image", [1, 12, 7]))))


@pytest.fixture(scope="module")
def taught():
    return LossTerm("teacher", tuple(rollouts_of(("text", [8, 2]), ("video", [4, 4]), seed=1, top_k=3, beta=0.5)))


def changed(term, **changes):
    """The term with other fields in the second completion of its second rollout."""
    first, second, *rest = term.rollouts
    completions = list(second.completions)
    completions[1] = replace(completions[1], **changes)
    return replace(term, rollouts=(first, second.only(completions), *rest))


def of_capability(rollout, name):
    return replace(rollout, prompt=replace(rollout.prompt, capability=name))


def silent(rollout):
    return rollout.only(packs.with_advantage(completion, 0.0) for completion in rollout.completions)


def state(policy, adapter, optimiser):
    """Everything that a step can change, to the bit."""
    tensors = list(values(policy, adapter).values())
    for _, moments in optimiser.snapshot():
        tensors += [moments[name] for name in sorted(moments)]
    return [tensor.numpy().tobytes() for tensor in tensors]


@NORMALISE
def test_the_budget_does_not_show(policy, adapter, native, taught, normalise):
    terms = [native, taught]
    whole, done = gradients_of(policy, adapter, terms, budget=4096, normalise=normalise)
    for budget in (400, 100):
        pieces, in_pieces = gradients_of(policy, adapter, terms, budget=budget, normalise=normalise)
        assert difference(pieces, whole) < ROUNDING
        for name, value in done.metrics.items():
            assert in_pieces.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert [len(pack(native.rollouts, budget)) for budget in (4096, 400, 100)] == [1, 2, 7]


@NORMALISE
def test_a_group_without_a_signal_counts_in_the_denominators_alone(policy, adapter, native, normalise):
    first, second, third = native.rollouts
    quiet = LossTerm("native", (first, silent(second), third))
    without = LossTerm("native", (first, third))
    # An advantage that is not 0 and moves nothing: the rollout is computed.
    almost = [packs.with_advantage(completion, 1e-30) for completion in second.completions]
    computed = LossTerm("native", (first, second.only(almost), third))
    gradients, done = gradients_of(policy, adapter, [quiet], normalise=normalise)
    computed_gradients, _ = gradients_of(policy, adapter, [computed], normalise=normalise)
    assert difference(gradients, computed_gradients) < ROUNDING
    share = without.num_sequences / quiet.num_sequences
    if normalise == "token":
        share = without.num_tokens / quiet.num_tokens
    alone, _ = gradients_of(policy, adapter, [without], normalise=normalise)
    assert difference(gradients, {key: share * value for key, value in alone.items()}) < ROUNDING
    assert done.skipped is None


def test_a_group_without_a_signal_is_not_computed(policy, adapter, native):
    """Else a value that is no number would be noticed."""
    quiet = LossTerm("native", (native.rollouts[0], silent(native.rollouts[1]), native.rollouts[2]))
    broken = changed(quiet, logprobs_C=np.full_like(quiet.rollouts[1].completions[1].logprobs_C, np.nan))
    gradients, _ = gradients_of(policy, adapter, [broken])
    expected, _ = gradients_of(policy, adapter, [quiet])
    assert difference(gradients, expected) == 0


def test_a_teachers_bins_are_a_signal_without_advantages(policy, adapter, taught):
    quiet = LossTerm("teacher", tuple(silent(rollout) for rollout in taught.rollouts))
    gradients, done = gradients_of(policy, adapter, [quiet])
    assert largest(gradients) > 0
    assert done.metrics["teacher/kl"] > 0


def test_nothing_to_learn_moves_nothing(policy, adapter, native):
    quiet = LossTerm("native", tuple(silent(rollout) for rollout in native.rollouts))
    optimiser = Optimiser(policy.adapters.parameters(adapter), lr=1e-3)
    before = values(policy, adapter)
    done = update(policy, adapter, optimiser, [quiet], loss=LossConfig(), budget=4096)
    assert done.skipped is None
    assert done.metrics["grad_norm"] == 0
    assert difference(values(policy, adapter), before) == 0


def test_the_gradient_is_the_sum_of_the_parts(policy, adapter, native, taught):
    both, done = gradients_of(policy, adapter, [native, taught])
    first, first_done = gradients_of(policy, adapter, [native])
    second, second_done = gradients_of(policy, adapter, [taught])
    assert difference(both, {key: first[key] + second[key] for key in first}) < ROUNDING
    for name, value in {**first_done.metrics, **second_done.metrics}.items():
        if name != "grad_norm":
            assert done.metrics[name] == value, name
    for name, gradients in (("native/", first), ("teacher/", second), ("", both)):
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in gradients.values()))
        assert done.metrics[f"{name}grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_parts_weigh_by_their_rollouts_where_the_recipe_says_so(policy, adapter, native, taught):
    """Ten completions and four: the smaller part counts 0.4, and the norm that is told is that of its share."""
    both, done = gradients_of(policy, adapter, [native, taught], part_weights="rollouts")
    first, _ = gradients_of(policy, adapter, [native])
    second, second_done = gradients_of(policy, adapter, [taught])
    assert (native.num_sequences, taught.num_sequences) == (10, 4)
    assert difference(both, {key: first[key] + 0.4 * second[key] for key in first}) < ROUNDING
    assert done.metrics["teacher/grad_norm"] == pytest.approx(0.4 * second_done.metrics["teacher/grad_norm"], rel=1e-4)


def test_other_adapters_are_left_alone(policy, noisy, native):
    updated, untouched = noisy(0), noisy(1)
    before = values(policy, untouched)
    update(policy, updated, observer(policy, updated), [native], loss=LossConfig(), budget=4096)
    assert difference(values(policy, untouched), before) == 0
    assert all(parameter.grad is None for parameter in policy.adapters.parameters(untouched).values())


def test_one_update_a_batch_has_ratios_of_exactly_1(policy, adapter, native):
    _, done = gradients_of(policy, adapter, [native])
    assert done.metrics["native/ratio"] == 1
    assert done.metrics["native/clip"] == 0


def test_the_second_update_of_a_batch_is_clipped(policy, adapter, native):
    once, _ = gradients_of(policy, adapter, [native], lr=1e-2)
    twice, done = gradients_of(policy, adapter, [native], lr=1e-2, updates_per_batch=2)
    assert abs(done.metrics["native/ratio"] - 1) > 1e-3
    assert 0 < done.metrics["native/clip"] < 1
    assert difference(twice, once) > 0.1


BREAKS = {
    "an engine that gave no number": ({"logprobs_C": np.nan}, "native: loss is nan"),
    "an endless advantage": ({"advantages_C": np.inf}, "native: loss is -inf"),
    "an advantage that is no number": ({"advantages_C": np.nan}, "native: loss is nan"),
}


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("budget", [4096, 64])
def test_what_is_not_finite_skips_the_step(policy, adapter, small, taught, case, budget):
    """The term before it was computed already. The next step is the one that would have been."""
    change, reason = BREAKS[case]
    lengths = len(small.rollouts[1].completions[1].ids_C)
    broken = changed(small, **{field: np.full(lengths, value, "f4") for field, value in change.items()})
    optimiser = Optimiser(policy.adapters.parameters(adapter), lr=1e-3, weight_decay=0.1)
    update(policy, adapter, optimiser, [small], loss=LossConfig(), budget=budget)
    before, snapshot = state(policy, adapter, optimiser), optimiser.snapshot()

    done = update(policy, adapter, optimiser, [taught, broken], loss=LossConfig(), budget=budget)
    assert done.skipped == reason
    assert done.metrics == {}
    assert done.budget == budget
    assert state(policy, adapter, optimiser) == before

    update(policy, adapter, optimiser, [small], loss=LossConfig(), budget=budget)
    after = state(policy, adapter, optimiser)
    optimiser.restore(snapshot)
    update(policy, adapter, optimiser, [small], loss=LossConfig(), budget=budget)
    assert state(policy, adapter, optimiser) == after


@pytest.mark.parametrize("had_moments", [False, True])
def test_the_second_update_of_a_batch_is_skipped_with_the_first(policy, adapter, small, had_moments, tmp_path):
    """With such a learning rate the first update leaves weights that give no numbers."""
    optimiser = Optimiser(policy.adapters.parameters(adapter), lr=1e30)
    if had_moments:
        sane = observer(policy, adapter)
        update(policy, adapter, sane, [small], loss=LossConfig(), budget=4096)
        sane.save(tmp_path)
        optimiser.load(tmp_path)
    before = state(policy, adapter, optimiser)
    done = update(policy, adapter, optimiser, [small], loss=LossConfig(updates_per_batch=2), budget=4096)
    assert done.skipped == "native: loss is nan"
    assert state(policy, adapter, optimiser) == before
    assert optimiser.num_updates == had_moments


def small_device(monkeypatch, policy, is_full, error=torch.OutOfMemoryError):
    """A device that is out of memory when `is_full` says so of a pack."""
    logprobs = policy.logprobs

    def refusing(adapter, pack, *rest):
        if is_full(pack):
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return logprobs(adapter, pack, *rest)

    monkeypatch.setattr(policy, "logprobs", refusing)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_full_device_halves_the_budget(policy, adapter, native, taught, monkeypatch, error):
    terms = [native, taught]
    expected, on_small = gradients_of(policy, adapter, terms, budget=128)
    assert all(any(len(row.ids_T) > 128 for row in pack(native.rollouts, budget)) for budget in (256, 512, 1024))
    small_device(monkeypatch, policy, lambda pack: len(pack.ids_T) > 128, error)
    gradients, done = gradients_of(policy, adapter, terms, budget=4096)
    assert done.budget == 128
    assert difference(gradients, expected) == 0
    assert done.metrics == on_small.metrics


def test_packs_before_the_one_that_did_not_fit_are_forgotten(policy, adapter, native, monkeypatch):
    expected, _ = gradients_of(policy, adapter, [native], budget=100)
    assert len(pack(native.rollouts, 200)) > 2
    passes = iter(range(100))
    small_device(monkeypatch, policy, lambda _: next(passes) == 2)
    gradients, done = gradients_of(policy, adapter, [native], budget=200)
    assert done.budget == 100
    assert difference(gradients, expected) == 0


def test_a_device_that_fills_up_late_starts_the_batch_again(policy, adapter, native, monkeypatch):
    """Twice in the second of two updates: what the first had changed is taken back each time."""
    settings = {"updates_per_batch": 2, "lr": 1e-2}
    assert len(pack(native.rollouts, 1024)) == 1
    expected, _ = gradients_of(policy, adapter, [native], budget=1024, **settings)
    passes = iter(range(100))
    small_device(monkeypatch, policy, lambda _: next(passes) in (1, 3))
    gradients, done = gradients_of(policy, adapter, [native], budget=4096, **settings)
    assert done.budget == 1024
    assert difference(gradients, expected) == 0


def test_a_device_without_any_room_is_told_in_one_line(policy, adapter, native, monkeypatch):
    optimiser = observer(policy, adapter)
    before = state(policy, adapter, optimiser)
    tried = []
    small_device(monkeypatch, policy, lambda pack: tried.append(len(pack.ids_T)) or True)
    with pytest.raises(UserError, match="out of memory") as caught:
        update(policy, adapter, optimiser, [native], loss=LossConfig(), budget=4096)
    assert "\n" not in str(caught.value)
    assert len(tried) == math.log2(4096 / LEAST_BUDGET) + 1
    assert state(policy, adapter, optimiser) == before
    assert all(parameter.grad is None for parameter in policy.adapters.parameters(adapter).values())


def test_other_errors_are_not_taken_for_a_full_device(policy, adapter, native, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(policy, "logprobs", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        update(policy, adapter, observer(policy, adapter), [native], loss=LossConfig(), budget=4096)


def test_gradients_of_several_capabilities_are_told_apart_and_add_up(policy, adapter, native):
    """In a mixed branch. The cosine is that of the gradients when the others are silent."""
    kinds = ["text", "image", "text"]
    pairs = zip(native.rollouts, kinds, strict=True)
    mixed = LossTerm("native", tuple(of_capability(rollout, kind) for rollout, kind in pairs))

    def alone(kind):
        rollouts = (rollout if rollout.prompt.capability == kind else silent(rollout) for rollout in mixed.rollouts)
        gradients, _ = gradients_of(policy, adapter, [LossTerm("native", tuple(rollouts))])
        return torch.cat([gradient.flatten() for gradient in gradients.values()])

    plain, done_plain = gradients_of(policy, adapter, [native])
    both, done = gradients_of(policy, adapter, [mixed])
    assert difference(both, plain) < ROUNDING
    cosine = torch.nn.functional.cosine_similarity(alone("text"), alone("image"), dim=0)
    assert done.metrics["native/cosine:text:image"] == pytest.approx(float(cosine), abs=1e-4)
    assert done.metrics["native/loss"] == pytest.approx(done_plain.metrics["native/loss"], abs=1e-6)
    assert not any("cosine" in name for name in done_plain.metrics)

"""One training step, from parts to an adapter: denominators, parts, guards. Equality with TRL is in `test_trl`."""

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


def groups_of(*shapes, seed=0, **settings):
    rng = np.random.default_rng(seed)
    return [packs.group(packs.prompt(kind, number), lengths, rng, **settings)
            for number, (kind, lengths) in enumerate(shapes)]  # fmt: skip


@pytest.fixture(scope="module")
def native():
    return LossTerm("native", tuple(groups_of(("text", [5, 90, 2, 70]), ("image", [1, 80, 27]), ("text", [20, 3, 95]))))


@pytest.fixture(scope="module")
def small():
    return LossTerm("native", tuple(groups_of(("text", [5, 9, 2]), ("image", [1, 12, 7]))))


@pytest.fixture(scope="module")
def taught():
    return LossTerm("teacher", tuple(groups_of(("text", [8, 2]), ("video", [4, 4]), seed=1, top_k=3, weight=0.5)))


def changed(part, **changes):
    """The part with other fields in the second target of its second group."""
    first, second, *others = part.groups
    targets = list(second.targets)
    targets[1] = replace(targets[1], **changes)
    return replace(part, groups=(first, second.only(targets), *others))


def silent(group):
    return group.only(replace(target, advantages_C=np.zeros_like(target.advantages_C)) for target in group.targets)


def state(policy, adapter, optimiser):
    """Everything that a step can change, to the bit."""
    moments = [found[name].numpy().tobytes() for _, found in optimiser.snapshot() for name in sorted(found)]
    return [value.numpy().tobytes() for value in values(policy, adapter).values()] + moments


@NORMALISE
def test_the_budget_does_not_show(policy, adapter, native, taught, normalise):
    parts = [native, taught]
    whole, done = gradients_of(policy, adapter, parts, budget=4096, normalise=normalise)
    for budget in (400, 100):
        pieces, in_pieces = gradients_of(policy, adapter, parts, budget=budget, normalise=normalise)
        assert difference(pieces, whole) < ROUNDING
        for name, value in done.metrics.items():
            assert in_pieces.metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert [len(pack(native.groups, budget)) for budget in (4096, 400, 100)] == [1, 2, 7]


@NORMALISE
def test_a_group_without_a_signal_counts_in_the_denominators_alone(policy, adapter, native, normalise):
    first, second, third = native.groups
    quiet = LossTerm("native", (first, silent(second), third))
    without = LossTerm("native", (first, third))
    # An advantage that is not 0 and moves nothing: the group is computed.
    almost = [replace(target, advantages_C=np.full_like(target.advantages_C, 1e-30)) for target in second.targets]
    computed = LossTerm("native", (first, second.only(almost), third))
    found, done = gradients_of(policy, adapter, [quiet], normalise=normalise)
    theirs, _ = gradients_of(policy, adapter, [computed], normalise=normalise)
    assert difference(found, theirs) < ROUNDING
    share = without.num_sequences / quiet.num_sequences
    if normalise == "token":
        share = without.num_tokens / quiet.num_tokens
    alone, _ = gradients_of(policy, adapter, [without], normalise=normalise)
    assert difference(found, {key: share * value for key, value in alone.items()}) < ROUNDING
    assert done.skipped is None


def test_a_group_without_a_signal_is_not_computed(policy, adapter, native):
    """Else a value that is no number would be noticed."""
    quiet = LossTerm("native", (native.groups[0], silent(native.groups[1]), native.groups[2]))
    broken = changed(quiet, engine_logprobs_C=np.full_like(quiet.groups[1].targets[1].engine_logprobs_C, np.nan))
    found, _ = gradients_of(policy, adapter, [broken])
    expected, _ = gradients_of(policy, adapter, [quiet])
    assert difference(found, expected) == 0


def test_a_teachers_bins_are_a_signal_without_advantages(policy, adapter, taught):
    quiet = LossTerm("teacher", tuple(silent(group) for group in taught.groups))
    found, done = gradients_of(policy, adapter, [quiet])
    assert largest(found) > 0
    assert done.metrics["teacher/kl"] > 0


def test_nothing_to_learn_moves_nothing(policy, adapter, native):
    quiet = LossTerm("native", tuple(silent(group) for group in native.groups))
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
    for name, value in (first_done.metrics | second_done.metrics).items():
        if name != "grad_norm":
            assert done.metrics[name] == value, name
    for name, found in (("native/", first), ("teacher/", second), ("", both)):
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in found.values()))
        assert done.metrics[f"{name}grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_other_adapters_are_left_alone(policy, noisy, native):
    mine, other = noisy(0), noisy(1)
    before = values(policy, other)
    update(policy, mine, observer(policy, mine), [native], loss=LossConfig(), budget=4096)
    assert difference(values(policy, other), before) == 0
    assert all(parameter.grad is None for parameter in policy.adapters.parameters(other).values())


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
    "an engine that gave no number": ({"engine_logprobs_C": np.nan}, "native: loss is nan"),
    "an endless advantage": ({"advantages_C": np.inf}, "native: loss is -inf"),
    "an advantage that is no number": ({"advantages_C": np.nan}, "native: loss is nan"),
}


@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("budget", [4096, 64])
def test_what_is_not_finite_skips_the_step(policy, adapter, small, taught, case, budget):
    """The part before it was computed already. The next step is the one that would have been."""
    change, reason = BREAKS[case]
    lengths = len(small.groups[1].targets[1].ids_C)
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
    parts = [native, taught]
    expected, on_small = gradients_of(policy, adapter, parts, budget=128)
    assert all(any(len(one.ids_T) > 128 for one in pack(native.groups, budget)) for budget in (256, 512, 1024))
    small_device(monkeypatch, policy, lambda pack: len(pack.ids_T) > 128, error)
    found, done = gradients_of(policy, adapter, parts, budget=4096)
    assert done.budget == 128
    assert difference(found, expected) == 0
    assert done.metrics == on_small.metrics


def test_packs_before_the_one_that_did_not_fit_are_forgotten(policy, adapter, native, monkeypatch):
    expected, _ = gradients_of(policy, adapter, [native], budget=100)
    assert len(pack(native.groups, 200)) > 2
    passes = iter(range(100))
    small_device(monkeypatch, policy, lambda _: next(passes) == 2)
    found, done = gradients_of(policy, adapter, [native], budget=200)
    assert done.budget == 100
    assert difference(found, expected) == 0


def test_a_device_that_fills_up_late_starts_the_batch_again(policy, adapter, native, monkeypatch):
    """Twice in the second of two updates: what the first had changed is taken back each time."""
    settings = {"updates_per_batch": 2, "lr": 1e-2}
    assert len(pack(native.groups, 1024)) == 1
    expected, _ = gradients_of(policy, adapter, [native], budget=1024, **settings)
    passes = iter(range(100))
    small_device(monkeypatch, policy, lambda _: next(passes) in (1, 3))
    found, done = gradients_of(policy, adapter, [native], budget=4096, **settings)
    assert done.budget == 1024
    assert difference(found, expected) == 0


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
    """Of a mixed branch. The cosine is that of the gradients when the others are silent."""
    kinds = ["text", "image", "text"]
    mixed = LossTerm("native", tuple(replace(one, kind=kind) for one, kind in zip(native.groups, kinds, strict=True)))

    def alone(kind):
        groups = (one if one.kind == kind else silent(one) for one in mixed.groups)
        found, _ = gradients_of(policy, adapter, [LossTerm("native", tuple(groups))])
        return torch.cat([one.flatten() for one in found.values()])

    plain, done_plain = gradients_of(policy, adapter, [native])
    both, done = gradients_of(policy, adapter, [mixed])
    assert difference(both, plain) < ROUNDING
    cosine = torch.nn.functional.cosine_similarity(alone("text"), alone("image"), dim=0)
    assert done.metrics["native/cosine:text:image"] == pytest.approx(float(cosine), abs=1e-4)
    assert done.metrics["native/loss"] == pytest.approx(done_plain.metrics["native/loss"], abs=1e-6)
    assert not any("cosine" in name for name in done_plain.metrics)

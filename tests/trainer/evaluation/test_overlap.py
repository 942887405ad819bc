"""The mathematics of overlap, shared probability and KL against loops and exact distributions."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.evaluation.overlap import ALARM, Overlaps, alarms, compare, overlap, shared, symmetric_kl
from trainer.plan.rhythm import HIGH, LOW
from trainer.rollout.sample import Scores


def test_overlap_is_the_share_of_common_tokens() -> None:
    rng = np.random.RandomState(0)
    a, b = (np.stack([rng.permutation(20)[:10] for _ in range(50)]) for _ in range(2))
    by_hand = [len(set(x) & set(y)) / 10 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert overlap(a, b) == pytest.approx(np.mean(by_hand))
    assert overlap(a, b) == overlap(b, a)
    assert overlap(a, a[:, ::-1]) == 1.0
    assert overlap(a, a + 20) == 0.0


def test_the_kl_of_samples_is_that_of_the_distributions() -> None:
    rng = np.random.RandomState(1)
    a, b = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    exact = ((a * np.log(a / b)).sum() + (b * np.log(b / a)).sum()) / 2
    of_a, of_b = (rng.choice(6, 200_000, p=p) for p in (a, b))
    log_a, log_b = (np.log(p).astype(np.float32) for p in (a, b))
    kl = symmetric_kl(log_a[of_a], log_b[of_a], log_a[of_b], log_b[of_b])
    assert kl == pytest.approx(exact, rel=0.02)
    assert symmetric_kl(log_b[of_b], log_a[of_b], log_b[of_a], log_a[of_a]) == pytest.approx(kl)


def likeliest(p_NV: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids_Nk = np.argsort(-p_NV, axis=1)[:, :k]
    return ids_Nk, np.log(np.take_along_axis(p_NV, ids_Nk, axis=1)).astype(np.float32)


def peaked(rng: np.random.RandomState, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Two like each other over 50 tokens at each of 200 positions: from nearly certain to flat."""
    logits = rng.normal(scale=rng.uniform(0.5, 6, (200, 1)), size=(200, 50))
    p, q = (np.exp(logits + rng.normal(scale=spread, size=logits.shape)) for _ in range(2))
    return p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_shared_probability_is_that_of_the_distributions_but_for_the_rest(spread: float) -> None:
    p, q = peaked(np.random.RandomState(3), spread)
    exact = np.minimum(p, q).sum(1)
    assert shared(*likeliest(p, 50), *likeliest(q, 50)) == pytest.approx(exact.mean(), abs=1e-6)  # the whole vocabulary
    for k in (1, 5, 10):
        of_p, of_q = likeliest(p, k), likeliest(q, k)
        rest = np.maximum(1 - np.exp(of_p[1]).sum(1), 1 - np.exp(of_q[1]).sum(1))
        # Position by position: in a mean, errors of both signs would hide each other.
        for n in range(len(p)):
            assert abs(shared(*(top[n : n + 1] for top in (*of_p, *of_q))) - exact[n]) <= rest[n] + 1e-6
        assert shared(*of_p, *of_q) == pytest.approx(shared(*of_q, *of_p))
        assert shared(*of_p, *of_p) == pytest.approx(1, abs=1e-6)


def test_shared_probability_is_1_minus_total_variation_and_bounded_by_kl() -> None:
    p, q = peaked(np.random.RandomState(4), 0.3)
    value = shared(*likeliest(p, 50), *likeliest(q, 50))
    assert value == pytest.approx(1 - np.abs(p - q).sum(1).mean() / 2, abs=1e-6)
    kl = ((p - q) * np.log(p / q)).sum(1).mean() / 2
    assert value >= 1 - np.sqrt(kl / 2)


def test_limits_are_those_of_the_committed_measurements() -> None:
    """The alarm lies between branches of CoPD and finished experts, the rhythm's band ends where noise begins."""
    rows = json.loads(Path("bench/results/likeness.json").read_text())["rows"]
    shares = {what: [row["shared"] for row in rows if row["what"] == what] for what in ("copd", "noise")}
    finished = [row["shared"] for row in rows if row["what"] == "expert" and row["kl"] >= 0.07]
    assert max(finished) < ALARM == LOW < min(shares["copd"])
    assert np.quantile(shares["copd"], 0.95) < HIGH < min(shares["noise"])


def scores(rng: np.random.RandomState, length: int) -> Scores:
    top, logprobs = likeliest(rng.dirichlet(np.full(9, 0.5), length), 3)
    return Scores(-rng.random_sample(length).astype(np.float32), top, logprobs)


def test_the_matrix_is_that_of_a_loop_over_tokens() -> None:
    rng, names, lengths = np.random.RandomState(2), ("text", "image"), (4, 1, 7)
    answers = {
        (student, capability): [[scores(rng, length) for length in lengths] for _ in names]
        for student in names
        for capability in ("sums", "counts")
    }
    overlaps = compare(names, answers, ("sums", "counts"), top_k=3, prompts=3)
    tokens = [(completion, token) for completion, length in enumerate(lengths) for token in range(length)]
    for a, student in enumerate(names):
        for b, teacher in enumerate(names):
            for capability in ("sums", "counts"):
                of_a, of_b = answers[student, capability], answers[teacher, capability]
                in_both = [
                    len(set(of_a[a][c].top_ids_Ck[t].tolist()) & set(of_a[b][c].top_ids_Ck[t].tolist())) / 3
                    for c, t in tokens
                ]
                forward = [float(of_a[a][c].logprobs_C[t] - of_a[b][c].logprobs_C[t]) for c, t in tokens]
                backward = [float(of_b[b][c].logprobs_C[t] - of_b[a][c].logprobs_C[t]) for c, t in tokens]
                likeness = overlaps.at(student, teacher, capability)
                common = [
                    shared(x.top_ids_Ck[[t]], x.top_logprobs_Ck[[t]], y.top_ids_Ck[[t]], y.top_logprobs_Ck[[t]])
                    for x, y, t in ((of_a[a][c], of_a[b][c], t) for c, t in tokens)
                ]
                assert likeness.shared == pytest.approx(np.mean(common))
                assert likeness.overlap == pytest.approx(np.mean(in_both))
                assert likeness.kl == pytest.approx((np.mean(forward) + np.mean(backward)) / 2, abs=1e-6)
                assert likeness.kl == pytest.approx(overlaps.at(teacher, student, capability).kl)
    assert overlaps.at("text", "text", "sums") == (1.0, 0.0, pytest.approx(1.0))


def some(image_from_text: float) -> Overlaps:
    shares = (((1.0,), (0.7,), (0.5,)), ((0.6,), (1.0,), (0.99,)), ((0.4,), (image_from_text,), (1.0,)))
    low = (((0.5,),) * 3,) * 3
    return Overlaps(("base", "text@3", "image@3"), ("sums",), 10, 64, low, low, shares)


def test_it_travels_as_json() -> None:
    overlaps = some(0.98)
    assert Overlaps.from_json(json.loads(json.dumps(overlaps.to_json()))) == overlaps


def test_a_student_out_of_a_teachers_reach_is_an_alarm() -> None:
    """Whatever the overlap, which is low all over."""
    assert list(alarms(some(0.98))) == []
    (line,) = alarms(some(0.95))
    assert line.startswith("image@3 shares 0.950 of its probability with text@3 on sums, below 0.97")

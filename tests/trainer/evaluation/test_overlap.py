"""The mathematics of overlap and KL against loops and exact distributions."""

import json

import numpy as np
import pytest

from trainer.evaluation.overlap import Overlaps, alarms, compare, overlap, symmetric_kl
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


def scores(rng: np.random.RandomState, length: int) -> Scores:
    top = np.stack([rng.permutation(9)[:3] for _ in range(length)])
    return Scores(-rng.random_sample(length).astype(np.float32), top, np.zeros((length, 3), np.float32))


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
                shared = [
                    len(set(of_a[a][c].top_ids_Ck[t].tolist()) & set(of_a[b][c].top_ids_Ck[t].tolist())) / 3
                    for c, t in tokens
                ]
                forward = [float(of_a[a][c].logprobs_C[t] - of_a[b][c].logprobs_C[t]) for c, t in tokens]
                backward = [float(of_b[b][c].logprobs_C[t] - of_b[a][c].logprobs_C[t]) for c, t in tokens]
                value, kl = overlaps.at(student, teacher, capability)
                assert value == pytest.approx(np.mean(shared))
                assert kl == pytest.approx((np.mean(forward) + np.mean(backward)) / 2, abs=1e-6)
                assert kl == pytest.approx(overlaps.at(teacher, student, capability)[1])
    assert overlaps.at("text", "text", "sums") == (1.0, 0.0)


def some(image_from_text: float) -> Overlaps:
    overlaps = (((1.0,), (0.7,), (0.5,)), ((0.6,), (1.0,), (0.95,)), ((0.4,), (image_from_text,), (1.0,)))
    return Overlaps(("base", "text@3", "image@3"), ("sums",), 10, 64, overlaps, overlaps)


def test_it_travels_as_json() -> None:
    overlaps = some(0.91)
    assert Overlaps.from_json(json.loads(json.dumps(overlaps.to_json()))) == overlaps


def test_a_student_out_of_a_teachers_reach_is_an_alarm() -> None:
    assert list(alarms(some(0.91))) == []
    (line,) = alarms(some(0.88))
    assert line.startswith("overlap of image@3 with text@3 is 0.880 on sums, below 0.90")

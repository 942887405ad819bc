"""What is told of a step beside its loss: numbers of its rollouts, and what a person should look at.

Left out: what the update measures (`update`), and overlap and KL of branches.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trainer.parts import Rollout
from trainer.rollout.sample import Scores

_LEAST_ENTROPY = 0.005

_LIMITS = {
    "cut_off": (0.5, "of the completions are cut off: raise rollout.max_completion_tokens"),
    "decided": (0.9, "of the prompts have one reward for all their completions: take easier or harder ones"),
    "unscorable": (0.1, "of the completions cannot be scored: look at the reward"),
    "mismatch": (0.05, "nat lie between trainer and engine: give them the same base, media settings and dtype"),
}


def rollout_metrics(part: str, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`PART/NAME`: rewards and lengths."""
    answers = [answer for rollout in rollouts for answer in rollout.completions]
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    groups = [{answer.reward for answer in rollout.completions} - {None} for rollout in rollouts]
    lengths = [len(answer.ids_C) for answer in answers]
    values = {
        "reward": float(np.mean(rewards)) if rewards else float("nan"),
        "unscorable": 1 - len(rewards) / len(answers),
        "decided": float(np.mean([len(values) < 2 for values in groups])),
        "length": float(np.mean(lengths)),
        "length_max": float(max(lengths)),
        "cut_off": float(np.mean([answer.is_cut_off for answer in answers])),
    }
    return {f"{part}/{name}": value for name, value in values.items()}


def engine_noise(rollouts: Sequence[Rollout], student: Sequence[Sequence[Scores]]) -> float:
    """Between what the branch said when it sampled and what it says when it is scored: one model, so near 0."""
    pairs = (
        (own.logprobs_C, answer.logprobs_C)
        for rollout, scores in zip(rollouts, student, strict=True)
        for answer, own in zip(rollout.completions, scores, strict=True)
    )
    return float(np.abs(np.concatenate([scored - sampled for scored, sampled in pairs])).mean())


def warnings(metrics: Mapping[str, float]) -> Iterator[str]:
    """Lengths that explode, entropy that collapses, data that teaches nothing, an engine that is another model."""
    for path, value in metrics.items():
        name = path.rpartition("/")[2]
        limit, text = _LIMITS.get(name, (float("inf"), ""))
        if value > limit:
            yield f"{path}: {value:.3g} {text}"
        if name == "entropy" and value < _LEAST_ENTROPY:
            yield f"{path}: {value:.3g} nat: the branch answers almost without choice; lower optimiser.lr"

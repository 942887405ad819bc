"""What is told of a step beside its loss: numbers of its rollouts, and what a person should look at."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trainer.parts import Rollout
from trainer.rollout.sample import Scores

LEAST_ENTROPY = 0.005
"""Nat per token. Below it nearly all completions of a prompt are the same text, and a group has nothing to compare."""

LIMITS = {
    "cut_off": (0.5, "of the completions are cut off: raise rollout.max_completion_tokens"),
    "decided": (0.9, "of the prompts have one reward for all their completions: take easier or harder ones"),
    "unscorable": (0.1, "of the completions cannot be scored: look at the reward"),
    # Rounding to bfloat16 alone makes up to 0.04 (on random weights); another base or another size of images far more.
    "new_moments": (0.5, "the optimiser's moments were lost with revisions of the store, and began anew"),
    "mismatch": (0.05, "nat lie between trainer and engine: give them the same base, media settings and dtype"),
}
"""What a metric may be at most, and what to do when it is more."""


def rollout_metrics(term: str, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`TERM/NAME`: rewards and lengths."""
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    rewards = [completion.reward for completion in completions if completion.reward is not None]
    # Decided: all judged completions of a prompt got one reward, so that their advantages are 0.
    distinct = [{completion.reward for completion in rollout.completions} - {None} for rollout in rollouts]
    lengths = [len(completion.ids_C) for completion in completions]
    values = {
        # NaN where nobody was judged, not 0: a broken reward is not a bad branch.
        "reward": float(np.mean(rewards)) if rewards else float("nan"),
        "unscorable": 1 - len(rewards) / len(completions),
        "decided": float(np.mean([len(values) < 2 for values in distinct])),
        "length": float(np.mean(lengths)),
        "length_max": float(max(lengths)),
        "cut_off": float(np.mean([completion.is_cut_off for completion in completions])),
    }
    return {f"{term}/{name}": value for name, value in values.items()}


def engine_noise(rollouts: Sequence[Rollout], student_scores: Sequence[Sequence[Scores]]) -> float:
    """Mean |log p when scored - log p when sampled| of the branch's own tokens: one model, so near 0."""
    differences = [
        scores.logprobs_C - completion.logprobs_C
        for rollout, scores_of_rollout in zip(rollouts, student_scores, strict=True)
        for completion, scores in zip(rollout.completions, scores_of_rollout, strict=True)
    ]
    # Over tokens, not over completions: a long completion has more chances to differ.
    return float(np.abs(np.concatenate(differences)).mean())


def warnings(metrics: Mapping[str, float]) -> Iterator[str]:
    """Lengths that explode, entropy that collapses, data that teaches nothing, an engine that is another model."""
    for path, value in metrics.items():
        name = path.rpartition("/")[2]  # the same limits for every term of the loss
        limit, advice = LIMITS.get(name, (float("inf"), ""))
        if value > limit:
            yield f"{path}: {value:.3g} {advice}"
        if name == "entropy" and value < LEAST_ENTROPY:
            yield f"{path}: {value:.3g} nat: the branch answers almost without choice; lower optimiser.lr"

"""A branch that can't earn a reward, told after its first step: what it answered, and what its reward looks for.

A step teaches nothing when all its rewards are alike. Where nobody was right either, it is mostly the base, the prompt
or the reward that doesn't fit the others, and hours of steps show no more than the first one did.
"""

from collections.abc import Mapping, Sequence

from trainer.parts import Rollout
from trainer.rewards import Rule

_SHOWN = 60
"""Characters of a completion: enough to see what kind of answer it is, and room for the rest of the line."""
_EXPECTED = {
    "math": r"a result that equals the answer, in \boxed{} best",
    "choice": "one letter, such as B",
    "numeric": "a number",
    "exact": r"the answer in \boxed{}",
    "reasoning-gym": "what the task itself takes for an answer",
}


def unrewarded(branch: str, rollouts: Sequence[Rollout], rules: Mapping[str, Rule]) -> str | None:
    """What a person should know; None where some completion was right, or better than another."""
    pairs = [(rollout, completion) for rollout in rollouts for completion in rollout.completions]
    judged = [(rollout, completion) for rollout, completion in pairs if completion.reward is not None]
    if not judged or len({completion.reward for _, completion in judged}) > 1:
        return None
    rollout, completion = judged[0]
    rule = rules[rollout.prompt.capability]
    assert completion.reward is not None
    if completion.reward > rule.format_share:  # somebody was right: that is how all of them were
        return None
    text = " ".join(completion.text.split())
    beginning = f"{text[:_SHOWN]}..." if len(text) > _SHOWN else text
    expected = _EXPECTED.get(rule.kind, f"what {rule.kind} takes")
    return (
        f"{branch} cannot learn yet: all {len(judged)} completions of its first step got {completion.reward:g}. "
        f"One is '{beginning}'; its reward, {rule.kind}, looks for {expected}. "
        "coevo check RECIPE tries the reward on the data's own answers"
    )

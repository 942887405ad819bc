"""A reward of one's own: a function of two texts, the completion and the row's answer, that returns a number."""

import re


def score(completion: str, answer: str) -> float:
    """1 for exactly as many words as asked; less the further away, as a share; 0 without a sentence."""
    words = re.findall(r"[A-Za-z']+", completion)
    target = int(answer)
    return max(0.0, 1 - abs(len(words) - target) / target) if words else 0.0

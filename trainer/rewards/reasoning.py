r"""The reward of reasoning-gym: its own `score_answer`, task by task.

The answer of a prompt is the whole entry as JSON (trainer.data.reasoning). What is scored is the last \boxed{...}, else
the last <answer>...</answer>, else the whole completion.
"""

import importlib
import json
import re
from typing import Any

from adapters.errors import UserError
from trainer.rewards import BadAnswerError
from trainer.rewards.answers import last_box

_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def reasoning_reward() -> Any:
    """The reward as a function of completion and answer. Imports reasoning-gym, which takes seconds."""
    try:
        score_of = importlib.import_module("reasoning_gym").get_score_answer_fn
    except ModuleNotFoundError:
        raise UserError("reward reasoning-gym: it is not installed; pip install 'coevo[reasoning-gym]'") from None

    def score(completion: str, answer: str) -> float:
        entry = entry_of(answer)
        return float(score_of(entry["metadata"]["source_dataset"])(given_answer(completion), entry))

    return score


def given_answer(completion: str) -> str:
    """The answer that a completion gives."""
    box = last_box(completion)
    tagged = _TAGS.findall(completion)
    return (box if box is not None else tagged[-1] if tagged else completion).strip()


def entry_of(answer: str) -> dict[str, Any]:
    """The entry of a task, out of a prompt's answer."""
    try:
        entry = json.loads(answer)
        assert isinstance(entry["metadata"]["source_dataset"], str)
    except (ValueError, TypeError, KeyError, AssertionError):
        raise BadAnswerError(f"answer {answer[:80]!r}: reward reasoning-gym needs an entry of a task as JSON") from None
    return entry


def right_answer(answer: str) -> str:
    """The answer that an entry shows as right; empty where a task shows none, as it takes many."""
    return str(entry_of(answer).get("answer") or "")

"""A step's record, made by hand: two terms of the loss, with completions of every kind."""

from pathlib import Path

import numpy as np

from service.rollouts import CompletionNotes, GroupNotes, PartHead, RecordHead, pack_group, write_record

IDS = list(b"37+2")


def completion(**changes) -> tuple[CompletionNotes, dict[str, np.ndarray]]:
    """Its notes, and its arrays by name; `None` is an array that it has not."""
    usual = {"text": "37+2", "reward": 1.0, "why": None, "is_cut_off": False, "ids": IDS, "logprobs": [-0.5] * 4,
             "advantages": [0.5] * 4, "delta": None}  # fmt: skip
    values = usual | changes
    arrays = {name: values.pop(name) for name in ("ids", "logprobs", "advantages", "delta")}
    row = {name: np.array(array) for name, array in arrays.items() if array is not None}
    return CompletionNotes(tokens=len(row["ids"]), arrays=list(row), **values), row


def group(number: int, *completions, **changes) -> dict[str, np.ndarray]:
    usual = {"prompt_id": f"{number}", "question": f"{number}+1?", "answer": "8", "media": []}
    notes = GroupNotes.model_validate(usual | changes | {"completions": [notes for notes, _ in completions]})
    return pack_group(notes, np.array([1, 2]), [row for _, row in completions])


def groups() -> dict[str, list[dict[str, np.ndarray]]]:
    """Five prompts that rewards judged, and one with an image that a teacher scored."""
    right, wrong = completion(), completion(reward=0.0, advantages=[-0.5] * 4)
    taught = completion(delta=[2.0, -2.0, 0.0, 0.5])
    left = completion(reward=None, why="it hung", is_cut_off=True, advantages=None, ids=IDS[:3], logprobs=[-1.25] * 3)
    return {
        "native": [group(number, right, wrong) for number in range(5)],
        "image": [group(9, taught, left, question="<image>1+red?", answer="3", media=["sha256:0"])],
    }


def write(path: Path, run: str = "first", branch: str = "image", step: int = 3, parts=None) -> Path:
    parts = groups() if parts is None else parts
    heads = [
        PartHead(name=name, capability=None if name == "native" else name, num_groups=len(packed))
        for name, packed in parts.items()
    ]
    head = RecordHead(run=run, branch=branch, step=step, metrics={"native/reward": 0.5}, parts=heads)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, head, lambda part, number: parts[part][number])
    return path

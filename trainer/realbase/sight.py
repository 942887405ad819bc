"""The vision tower learns to read: each cell of a picture becomes the embedding of the word for what it shows.

The language model is frozen and not even computed, so this takes less than a minute on one core. A digit in a picture
then is to the model what the same digit in a text is.

Axes: M tokens of all pictures, D hidden size, W words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from trainer.realbase.digits import Split, of_split, picture, scans

WORDS = tuple("0123456789")
_ROW = 5
"""Most digits in a row."""


@dataclass(frozen=True, slots=True)
class SightTraining:
    steps: int = 800
    pictures: int = 16
    """In a step."""
    lr: float = 2e-3
    warmup: int = 50
    """Steps over which the learning rate rises; it falls to 0 at the end."""
    sharpness: float = 4.0
    """How much a squared distance to a word's embedding counts against that word."""
    seed: int = 0


def learn_to_see(
    model: Qwen3VLForConditionalGeneration,
    processor: Qwen3VLProcessor,
    training: SightTraining,
    tell: Callable[[int, int], None],
) -> None:
    """Trains the tower in place, on the training split's scans."""
    tower: Any = model.model.visual
    # DeepStack adds to the inner layers what the embedding of a word says already: its mergers add nothing.
    for merger in tower.deepstack_merger_list:
        torch.nn.init.zeros_(merger.linear_fc2.weight)
        torch.nn.init.zeros_(merger.linear_fc2.bias)
    words_WD = word_embeddings(model, processor)
    rng, numbers, labels_N = np.random.default_rng(training.seed), of_split("train"), scans()[1]
    # Neither a gradient nor a moment of DeepStack's: a step of Adam would move them off zero.
    learnt = [parameter for name, parameter in tower.named_parameters() if "deepstack" not in name]
    for parameter in learnt:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(learnt, lr=training.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / training.warmup) * (1 - step / training.steps)
    )
    tower.train()
    for step in range(training.steps):
        rows = [rng.choice(numbers, rng.integers(1, _ROW + 1)) for _ in range(training.pictures)]
        features_MD = _features(tower, processor, [picture(row, rng) for row in rows])
        labels_M = torch.from_numpy(labels_N[np.concatenate(rows)])
        distances_MW = torch.cdist(features_MD, words_WD) ** 2
        # Nearest of the words, and near: a feature beside all embeddings would be no word to the model.
        loss = functional.cross_entropy(-training.sharpness * distances_MW, labels_M)
        loss = loss + distances_MW.gather(1, labels_M[:, None]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        tell(step + 1, training.steps)
    tower.requires_grad_(False).eval()


@torch.no_grad()
def share_read(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, split: Split) -> float:
    """The share of a split's scans whose nearest word is right."""
    # Another stream of shifts than any that training began with.
    numbers, labels_N, rng = of_split(split), scans()[1], np.random.default_rng(1)
    words_WD, right = word_embeddings(model, processor), 0
    for start in range(0, len(numbers), _ROW):
        row = numbers[start : start + _ROW]
        features_MD = _features(model.model.visual, processor, [picture(row, rng)])
        nearest_M = torch.cdist(features_MD, words_WD).argmin(1)
        right += int((nearest_M == torch.from_numpy(labels_N[row])).sum())
    return right / len(numbers)


def word_embeddings(model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor) -> Tensor:
    """The rows [W, D] of the tokens for the ten digits."""
    ids: Any = processor.tokenizer(list(WORDS), add_special_tokens=False)["input_ids"]
    assert all(len(row) == 1 for row in ids), "a digit is one token"
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.detach()[[row[0] for row in ids]]


def _features(tower: Any, processor: Qwen3VLProcessor, pictures: list[Any]) -> Tensor:
    settings: Any = {"images": pictures, "do_resize": False, "return_tensors": "pt"}
    pixels: Any = processor.image_processor(**settings)
    features_MD: Tensor = tower(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
    return features_MD

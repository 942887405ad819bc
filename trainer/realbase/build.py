"""The two bases that are made of the source, as checkpoints in a folder.

Both are float32, 0.54 GB: what they say is equal to rounding, and in bfloat16 each would be rounded in its own way.
Left out so far: a supervised stage, after which the model would answer about the digits that it sees.
"""

from collections.abc import Callable
from pathlib import Path

from trainer.realbase.embed import embed
from trainer.realbase.sight import SightTraining, learn_to_see
from trainer.realbase.source import read_source
from trainer.realbase.words import processor_of


def build_text(folder: Path) -> None:
    """The source itself: a Llama, which reads text alone."""
    model, tokenizer = read_source()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_seeing(folder: Path, training: SightTraining, tell: Callable[[int, int], None]) -> None:
    """The source inside Qwen3-VL's architecture, with a tower that reads digits."""
    llama, tokenizer = read_source()
    processor = processor_of(tokenizer)
    model = embed(llama, processor.tokenizer)
    del llama  # its weights are copied, and half a gigabyte is much on a small machine
    learn_to_see(model, processor, training, tell)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

"""The bases that are made of the source, as checkpoints in a folder: the source itself, one that sees, and the real
base, which sees and has learnt to answer about it.

All are float32, 0.54 GB: what the first two say is equal to rounding, and in bfloat16 each would be rounded in its own
way.
"""

import fcntl
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
from transformers.utils.logging import disable_progress_bar

from adapters.errors import UserError
from adapters.merge import appearing
from trainer.miniature.build import Habits, Training
from trainer.miniature.model import CHAT_TEMPLATE
from trainer.realbase.embed import embed
from trainer.realbase.lessons import Lessons, teach
from trainer.realbase.questions import CAPABILITIES
from trainer.realbase.settings import RealSettings
from trainer.realbase.sight import SightTraining, learn_to_see
from trainer.realbase.source import read_source
from trainer.realbase.words import TEMPLATE, processor_of


def build_text(folder: Path) -> None:
    """The source itself: a Llama, which reads text alone."""
    model, tokenizer = read_source()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


Tell = Callable[[int, int], None]


def build_seeing(folder: Path, training: SightTraining, tell: Tell, template: str = TEMPLATE) -> None:
    """The source inside Qwen3-VL's architecture, with a tower that reads digits."""
    llama, tokenizer = read_source()
    processor = processor_of(tokenizer, template)
    model = embed(llama, processor.tokenizer)
    del llama  # its weights are copied, and half a gigabyte is much on a small machine
    learn_to_see(model, processor, training, tell)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def build_real(folder: Path, settings: RealSettings, show: Callable[[str], AbstractContextManager[Tell]]) -> None:
    """The real base in `folder`. What is done lies beside it until it is whole, and a build that was stopped goes on
    from there. `show` shows how far some work is."""
    disable_progress_bar()  # one of a single file; `show` has those that a person waits for
    draft = folder.with_name(f"{folder.name}.draft")
    draft.mkdir(parents=True, exist_ok=True)
    with _alone(draft):
        if not (seeing := draft / "seeing").exists():
            with appearing(seeing) as unfinished, show("learning to read digits") as tell:
                # Its chats have no message of the system: a third of a short question's tokens, and it teaches nothing.
                build_seeing(unfinished, SightTraining(steps=settings.sight_steps), tell, CHAT_TEMPLATE)
        model = Qwen3VLForConditionalGeneration.from_pretrained(seeing, dtype="float32")
        processor = Qwen3VLProcessor.from_pretrained(seeing)
        with show("learning from worked solutions") as tell:
            teach(model, processor, lessons_of(settings), draft / "lessons.pt", tell)
        with appearing(folder) as unfinished:
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
        shutil.rmtree(draft)


def lessons_of(settings: RealSettings) -> Lessons:
    training = Training(
        steps=settings.steps,
        skill=settings.skill,
        style=settings.style,
        lr=settings.lr,
        warmup=settings.warmup,
        last_lr=settings.last_lr,
        seed=settings.seed,
    )
    habits = Habits(
        conflict=settings.conflict,
        careful=settings.careful,
        careless=settings.careless,
        reliable=settings.reliable,
    )
    return Lessons(tuple(CAPABILITIES.values()), habits, training, settings.questions)


@contextmanager
def _alone(draft: Path) -> Generator[None]:
    """A block that one process at a time is in; the lock goes with the process."""
    with (draft / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{draft}: another process is building there; wait for it, or end it and go on") from None
        yield

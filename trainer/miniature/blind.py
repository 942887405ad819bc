"""What can be scored without looking: the level that every accuracy of the miniature is read against.

Three of them. The best *constant* answers every question alike. The best *guess* knows the whole question but not
the scene, so it takes the count to be what it most often is; in text, where nothing is looked at, it does not know the
factors. Both come from the generator alone. A model's *swapped* accuracy is measured: each question is shown with the
media of the next, and what is left of its accuracy did not come from looking.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from trainer.miniature.question import Question

_HINTS: tuple[Callable[[Question], Hashable], ...] = (
    lambda question: question.scene.thing if question.capability.media != "none" else None,
    lambda question: question.start % 10,
    lambda question: question.steps[1:],
)


def best_constant(known: Sequence[Question], asked: Sequence[Question]) -> float:
    """The accuracy on `asked` of the answer that is most frequent in `known`."""
    (answer, _), *_ = Counter(question.answer for question in known).most_common(1)
    return sum(question.answer == answer for question in asked) / len(asked)


def best_guess(known: Sequence[Question], asked: Sequence[Question]) -> float:
    """The accuracy of the likeliest count, given whichever part of the question tells most about it.

    Likelihoods come from `known`, a training split: fitted to the questions that are asked, chance would flatter them.
    """
    return max(_likeliest_count(known, asked, hint) for hint in _HINTS)


def _likeliest_count(
    known: Sequence[Question], asked: Sequence[Question], hint: Callable[[Question], Hashable]
) -> float:
    seen: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for question in known:
        seen[hint(question)][question.scene.count] += 1
    guesses = {told: counts.most_common(1)[0][0] for told, counts in seen.items()}
    right = [question.scene.count == guesses.get(hint(question)) for question in asked]
    return sum(right) / len(asked)


def swapped(questions: Sequence[Question]) -> list[Question]:
    """The same questions and answers, each with the media of the next."""
    others = [*questions[1:], *questions[:1]]
    return [
        replace(question, scene=replace(question.scene, render=other.scene.render))
        for question, other in zip(questions, others, strict=True)
    ]

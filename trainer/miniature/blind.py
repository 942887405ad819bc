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
    # In text the phrase holds the factors, so knowing it would be looking.
    lambda question: question.scene.phrase if question.capability.media != "none" else None,
    lambda question: question.start % 10,
    lambda question: question.steps[1:],
)
"""The parts of a question that might give its count away: its phrase, its last digit, its further steps."""


def best_constant(known: Sequence[Question], unseen: Sequence[Question]) -> float:
    """The accuracy on `unseen` of the answer that is most frequent in `known`."""
    (answer, _), *_ = Counter(question.answer for question in known).most_common(1)
    return sum(question.answer == answer for question in unseen) / len(unseen)


def best_guess(known: Sequence[Question], unseen: Sequence[Question]) -> float:
    """The accuracy of the likeliest count, given whichever part of the question says most about it."""
    accuracies: list[float] = []
    for hint in _HINTS:
        # Likelihoods come from a training split: fitted to the questions that are asked, chance would flatter them.
        counts: dict[Hashable, Counter[int]] = defaultdict(Counter)
        for question in known:
            counts[hint(question)][question.scene.count] += 1
        guesses = {value: counter.most_common(1)[0][0] for value, counter in counts.items()}
        right = [question.scene.count == guesses.get(hint(question)) for question in unseen]
        accuracies.append(sum(right) / len(unseen))
    return max(accuracies)


def swapped(questions: Sequence[Question]) -> list[Question]:
    """The same questions and answers, each with the media of the next."""
    following = [*questions[1:], *questions[:1]]
    return [
        replace(question, scene=replace(question.scene, render=next_question.scene.render))
        for question, next_question in zip(questions, following, strict=True)
    ]

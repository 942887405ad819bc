"""One batch on its way through the reward children: who is next, who gets how long, who had its chances.

Every completion has two tries. When its child dies or takes too long, the completion goes to the end of the queue;
when that happens again it is unscorable. So a kill from outside costs nothing, a completion that kills or hangs its
child costs two children, and those that were queued behind it go back to the front.

Everything here is arithmetic on indices; processes and clocks are the pool's (trainer.rewards.pool).
"""

from collections import deque

from trainer.rewards import Scored

_MAX_CHUNK = 32
"""Completions that a child gets at once. More save round trips, but those behind a hang wait for its end."""
_MAX_LOAD_FAILURES = 3
"""Children that may die while they load a reward. One may be killed from outside; three in a batch are its fault."""


class RewardBatch:
    """The queue and the results of `num_items` completions, named by their indices."""

    def __init__(self, num_items: int, num_children: int) -> None:
        self._num_children = num_children
        self._fresh = deque(range(num_items))
        self._again: deque[int] = deque()
        self._tried: set[int] = set()
        self._scored: dict[int, Scored] = {}
        self._num_items = num_items
        self._num_load_failures = 0

    @property
    def num_unfinished(self) -> int:
        return self._num_items - self.num_scored

    @property
    def num_scored(self) -> int:
        return len(self._scored)

    def take(self) -> list[int]:
        """The next completions for an idle child: fewer as the queue runs out, second tries one by one."""
        if self._fresh:
            # Half of an equal share, so that no child sits idle while another works through the rest of the batch.
            chunk = min(_MAX_CHUNK, max(1, len(self._fresh) // (2 * self._num_children)))
            return [self._fresh.popleft() for _ in range(chunk)]
        return [self._again.popleft()] if self._again else []

    def settle(self, index: int, scored: Scored) -> None:
        """The final result of a completion."""
        assert index not in self._scored, f"completion {index} has a result already"
        self._scored[index] = scored

    def put_back(self, work: list[int]) -> None:
        """Nobody has begun these: to the front of the queue."""
        self._fresh.extendleft(reversed(work))

    def fail(self, work: list[int], why: str) -> None:
        """A child is gone with `work` unfinished; its first completion is the one it was on."""
        head, *behind = work
        self.put_back(behind)
        if head in self._tried:
            self.settle(head, Scored(None, why))
        else:
            self._tried.add(head)
            self._again.append(head)  # behind all fresh ones: a completion that hangs must not cost them their turn

    def fail_to_load(self, work: list[int], why: str) -> None:
        """A child is gone before it came to the first completion: nobody's fault, until it happens again and again."""
        self.put_back(work)
        self._num_load_failures += 1
        if self._num_load_failures == _MAX_LOAD_FAILURES:
            self.give_up(why)

    def give_up(self, why: str) -> None:
        """No more tries: what has no result gets this reason."""
        for index in range(self._num_items):
            self._scored.setdefault(index, Scored(None, why))
        self._fresh.clear()
        self._again.clear()

    def allowance(self, index: int, left_s: float) -> float:
        """The seconds that a try at `index` may take which began when `left_s` were left.

        allowance = left_s * min(1/2 on the first try, else 1; max(children / unfinished, 1/8))
        """
        most = 1.0 if index in self._tried else 0.5  # half, so that a second try has time; the last may take all
        share = self._num_children / max(1, self.num_unfinished)  # equal for all that wait
        return left_s * min(most, max(share, 1 / 8))  # in a large batch an equal share is no time at all

    def results(self) -> list[Scored]:
        return [self._scored[index] for index in range(self._num_items)]

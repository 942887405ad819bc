"""Scores completions in children that can be killed, so that no reward can hang, crash or poison its caller.

    with RewardPool(num_children=2) as pool:
        pool.check(Rule("my_rewards:brevity"))  # a wrong name fails here, before anything starts
        scored = pool.score(items, Rule("math", format_share=0.1), deadline_s=30)

One pool serves any number of rewards: the rule travels with the batch. Results come in the order of the items.
A completion that raises, hangs, kills its child or returns no number is unscorable (trainer.rewards), and costs the
others nothing but time: trainer.rewards.batch says who gets how much of it.

`start()` returns at once. Call it first, before torch is imported: the fork server needs a second or two to load
sympy, which then passes while torch loads, and a recipe's rewards are checked before its model is there. Called late
it costs that time and nothing else: the server is a fresh interpreter, whatever this process has loaded.

Left out: a sandbox. A reward runs with the trainer's rights; files and network are not blocked. Memory is bounded
per process (`memory_mb`, of address space), not for what a reward starts in processes of its own; those are killed
with their child.
"""

import json
import logging
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from itertools import count
from os import cpu_count, environ, pathsep
from types import TracebackType
from typing import Any, Self

from adapters.errors import UserError
from trainer.rewards import RewardItem, Rule, Scored
from trainer.rewards.batch import RewardBatch

HALF_THE_CORES = max(1, (cpu_count() or 2) // 2)
"""Children that leave room for an engine or a trainer."""
_FORK_S = 30.0
"""A fork takes milliseconds: what takes longer than this will never come."""
_LOAD_S = 300.0
"""The server's own start takes a second or two of a processor, which is minutes where others use all of them. One that
is replaced too soon begins again, and never comes up."""
_WARN_SHARE = 0.02
"""Share of unscorable completions above which a batch is worth a warning: a few are in every run."""

Message = dict[str, Any] | None
"""What a child sends: {"ready": pid}, {"loaded": None or why not}, {"value", "why"[, "leaves"]}. None: it is gone."""

log = logging.getLogger(__name__)


class ForkServer:
    """The process that forks and reaps the reward children (trainer.rewards.children)."""

    def __init__(self) -> None:
        self._orders, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.setblocking(False)  # a server that was stopped must not stop the trainer with it
        # -P and PYTHONPATH: the children import a user's module from where this process would. A fixed hash seed:
        # sympy's order of terms, and with it a verdict at the edge, must not change between runs.
        paths = pathsep.join(path or "." for path in sys.path)
        settings = {"PYTHONPATH": paths, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.rewards.children", str(server_end.fileno())],
            env=environ | settings,
            pass_fds=[server_end.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the trainer alone, which then ends the server
        )
        server_end.close()  # or the trainer's own copy would keep it open when the server is gone

    def fork(self, key: int, memory_mb: int) -> socket.socket:
        """Orders a child; the channel to it, on which it says when it is up."""
        channel, child_end = socket.socketpair()
        channel.setblocking(False)
        order = json.dumps({"fork": key, "memory_mb": memory_mb}).encode()
        with child_end:
            try:
                socket.send_fds(self._orders, [order], [child_end.fileno()])
            except OSError:
                channel.close()
                raise
        return channel

    def reap(self, key: int) -> None:
        self._orders.send(json.dumps({"reap": key}).encode())

    def close(self) -> None:
        """Ends the server, which kills its children first."""
        self._orders.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """For a server that does not obey. The kernel kills its children with it."""
        self._orders.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@dataclass(eq=False, slots=True)
class RewardProcess:
    """One child as the pool sees it: what it is doing, and since when."""

    key: int
    channel: socket.socket
    since: float
    """When it last began something: its start, a load, a completion."""
    is_ready: bool = False
    is_loading: bool = False
    work: list[int] = field(default_factory=list[int])
    """Indices of the completions that it has not answered, the one it is on first."""
    inbox: bytes = b""
    outbox: bytes = b""

    @property
    def is_busy(self) -> bool:
        return self.is_loading or bool(self.work)

    def send(self) -> None:
        """As much of the outbox as the child takes now: one that was stopped takes nothing, and must not stop us."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # the last two are read as its end
            self.outbox = self.outbox[self.channel.send(self.outbox) :]

    def read(self) -> list[Message]:
        """Its new messages; None as the last one when it is gone."""
        try:
            data = self.channel.recv(1 << 16)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        *lines, self.inbox = (self.inbox + data).split(b"\n")  # the last piece is a message that is still coming
        messages: list[Message] = [json.loads(line) for line in lines]
        return messages if data else [*messages, None]


class RewardPool:
    """`num_children` children that score batches, one batch at a time; other threads wait for their turn."""

    def __init__(self, *, num_children: int = 2, memory_mb: int = 4096) -> None:
        self._num_children = num_children
        self._memory_mb = memory_mb
        self._lock = threading.Lock()
        self._keys = count()  # not process ids: those are known only when a child is up, and are used again
        self._server: ForkServer | None = None
        self._up_since: float | None = None
        """When the server's first child came up: then it was loaded."""
        self._children: list[RewardProcess] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Starts the fork server and orders the children, without waiting for either. A second call does nothing."""
        with self._lock:
            if self._server is None:
                self._server = ForkServer()
                for _ in range(self._num_children):
                    self._spawn()

    def close(self) -> None:
        """Kills the children and ends the server, for good. No process is left behind."""
        with self._lock:
            for child in self._children:
                child.channel.close()
            self._children.clear()
            self._selector.close()
            if self._server is not None:
                self._server.close()

    def check(self, rule: Rule, deadline_s: float = 60.0) -> None:
        """Loads the reward in a child: a UserError when that fails, or takes longer than `deadline_s`."""
        self.start()
        with self._lock, self._no_child_left_busy():
            child = self._wait_for_a_child()
            self._send_work(child, [], rule, [])  # no completions: the child loads the reward and answers that it has
            deadline = time.monotonic() + deadline_s
            while (left_s := deadline - time.monotonic()) > 0:
                for sender, message in self._listen(left_s):
                    if sender is not child:
                        continue
                    if message is None:
                        raise UserError(f"reward {rule.kind}: its import ended the process; mend the module")
                    if message["loaded"] is not None:
                        raise UserError(message["loaded"])
                    return
            raise UserError(f"reward {rule.kind}: its import took longer than {deadline_s:g} s; mend the module")

    def score(self, items: Sequence[RewardItem], rule: Rule, deadline_s: float) -> list[Scored]:
        """One result for each item, in their order, `deadline_s` after the batch's turn at the latest.

        The turn has come when no other batch is being scored and a child is up. A batch in which something hangs
        takes its whole deadline.
        """
        if not items:
            return []
        self.start()
        with self._lock, self._no_child_left_busy():
            self._wait_for_a_child()
            batch = RewardBatch(len(items), self._num_children)
            deadline = time.monotonic() + deadline_s
            while batch.num_unfinished and time.monotonic() < deadline:
                for child in self._children:
                    if child.is_ready and not child.is_busy and (work := batch.take()):
                        self._send_work(child, items, rule, work)
                # No longer than until the first child's time is up: a hang sends no message that would wake us.
                ups = [self._time_is_up(batch, child, deadline) for child in self._children if child.is_busy]
                for child, message in self._listen(max(0.0, min([deadline, *ups]) - time.monotonic())):
                    self._record(batch, child, message)
                self._stop_late(batch, deadline)
            batch.give_up(f"no result within the deadline of {deadline_s:g} s")
        scored = batch.results()
        reasons = Counter(result.why for result in scored if result.value is None)
        if reasons.total() > _WARN_SHARE * len(scored):
            most = "; ".join(f"{times} x {why}" for why, times in reasons.most_common(3))
            log.warning("reward %s: %d of %d completions unscorable: %s", rule.kind, reasons.total(), len(scored), most)
        return scored

    # ---- one batch ----

    def _record(self, batch: RewardBatch, child: RewardProcess, message: Message) -> None:
        if not batch.num_unfinished:
            return  # given up: what still comes in is of no use
        if message is None:
            self._lose(batch, child, "its process died (crash, kill or exit)")
        elif "why" in message:
            batch.settle(child.work.pop(0), Scored(message["value"], message["why"]))
            if "leaves" in message:  # its memory is full: what was queued behind goes to another child
                batch.put_back(child.work)
                child.work, child.is_ready = [], False

    def _lose(self, batch: RewardBatch, child: RewardProcess, why: str) -> None:
        """Gives the work of a child that is no more back to the batch."""
        if child.is_loading:
            batch.fail_to_load(child.work, f"loading the reward: {why}")
        elif child.work:
            batch.fail(child.work, why)
        child.work = []

    def _stop_late(self, batch: RewardBatch, deadline: float) -> None:
        """Replaces the children whose time is up."""
        now = time.monotonic()
        for child in list(self._children):  # a copy: replacing changes the list
            if child.is_busy and now >= self._time_is_up(batch, child, deadline):
                self._replace(child)
                if child.is_loading and batch.num_scored:  # it loads well: there was too little time left for another
                    batch.put_back(child.work)
                    child.work = []
                else:
                    self._lose(batch, child, f"it was stopped after {now - child.since:.2g} s")
        self._replace_stuck_server()

    def _time_is_up(self, batch: RewardBatch, child: RewardProcess, deadline: float) -> float:
        # Counted from when the child began, not from now: else the limit would recede as time passes.
        left_s = deadline - child.since
        return child.since + (left_s / 2 if child.is_loading else batch.allowance(child.work[0], left_s))

    # ---- the children ----

    def _listen(self, patience_s: float) -> list[tuple[RewardProcess, Message]]:
        """Waits for news of the children; who has come up is marked ready, who is gone is replaced."""
        news: list[tuple[RewardProcess, Message]] = []
        for key, events in self._selector.select(patience_s):
            child: RewardProcess = key.data
            if events & selectors.EVENT_WRITE:
                child.send()
                self._watch(child)
            if events & selectors.EVENT_READ:
                news += [(child, message) for message in child.read()]
        now = time.monotonic()
        for child, message in news:
            if message is None:
                self._replace(child)
            else:
                child.since = now  # each answer restarts the clock: the next completion begins with it
                if "ready" in message:
                    child.is_ready, self._up_since = True, self._up_since or now
                child.is_loading = child.is_loading and "loaded" not in message
        return [(child, message) for child, message in news if message is None or "ready" not in message]

    def _wait_for_a_child(self) -> RewardProcess:
        began = time.monotonic()
        self._listen(0)  # some may have died since the last batch
        while True:
            if ready := next((child for child in self._children if child.is_ready), None):
                return ready
            if time.monotonic() > began + 2 * (_FORK_S if self._up_since else _LOAD_S):
                raise RuntimeError("the fork server of the rewards has started no child; its stderr says why")
            self._listen(1.0)
            self._replace_stuck_server()

    @contextmanager
    def _no_child_left_busy(self) -> Generator[None]:
        """Whatever ends a batch, nobody goes on with it: a late result would be taken for one of the next batch."""
        try:
            yield
        finally:
            for child in list(self._children):
                if child.is_busy:
                    self._replace(child)

    def _replace(self, child: RewardProcess) -> None:
        self._selector.unregister(child.channel)
        child.channel.close()
        self._children.remove(child)
        assert self._server is not None
        with suppress(OSError):  # a server that is gone took its children with it
            self._server.reap(child.key)
        self._spawn()

    def _spawn(self) -> None:
        assert self._server is not None
        key = next(self._keys)
        try:
            channel = self._server.fork(key, self._memory_mb)
        except OSError:  # killed, or stopped for so long that its socket is full
            self._server.kill()
            self._server, self._up_since = ForkServer(), None
            channel = self._server.fork(key, self._memory_mb)
        child = RewardProcess(key, channel, since=time.monotonic())
        self._children.append(child)
        self._selector.register(channel, selectors.EVENT_READ, child)

    def _replace_stuck_server(self) -> None:
        """Replaces a server that has not started a child for too long, and the children that it owes."""
        up, now = self._up_since, time.monotonic()
        owed = [child for child in self._children if not child.is_ready]
        if late := [child for child in owed if now > (max(child.since, up) + _FORK_S if up else child.since + _LOAD_S)]:
            assert self._server is not None
            self._server.kill()  # the first order that finds its socket closed starts the next server
            for child in late:
                self._replace(child)

    def _send_work(self, child: RewardProcess, items: Sequence[RewardItem], rule: Rule, work: list[int]) -> None:
        pairs = [(items[index].completion, items[index].answer) for index in work]
        # The rule goes with every batch, so that any child can take any reward.
        child.outbox = json.dumps({"rule": astuple(rule), "items": pairs}).encode() + b"\n"
        child.is_loading, child.work, child.since = True, work, time.monotonic()
        child.send()
        self._watch(child)

    def _watch(self, child: RewardProcess) -> None:
        # Writable only while something waits to be written: an empty socket is always ready, and would spin the loop.
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.outbox else 0)
        self._selector.modify(child.channel, events, child)

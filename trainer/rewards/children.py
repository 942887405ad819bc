"""The fork server of the reward pool, and the life of its children. Started as `python -m trainer.rewards.children FD`.

The server is a fresh interpreter with math-verify loaded and warm; it never imports torch, so a child that died is
replaced in milliseconds and no child inherits threads or a CUDA context. It obeys two orders on its socket: fork a
child on the socket that comes with the order, and reap a child (SIGKILL to its process group, then wait for all of
it). Nobody else waits for the children, so a process id cannot have passed to a stranger when it is killed.

Nothing outlives the trainer: the server ends when its socket closes or when its parent has changed, and kills every
group first; a child ends when its socket closes, and the kernel kills it when the server dies (PR_SET_PDEATHSIG).

multiprocessing's own fork server is not used: it runs the parent's `__main__` again in every child (torch included),
has one list of preloaded modules for the whole process, and waits for the children behind our back.

Left out: portability. Linux only (prctl, SOCK_SEQPACKET), as is the engine.
"""

import ctypes
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

from adapters.errors import UserError
from trainer.rewards import RewardItem, Rule, Scored, describe, judge, load
from trainer.rewards.mathematics import warm_up

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PARENT_CHECK_S = 1.0
"""Between two looks at whether the trainer lives. A socket that a fork of the trainer still holds never closes."""

Message = dict[str, Any]


def main(fd: int) -> None:
    """The server's life: one order after the other until the pool is gone."""
    orders = socket.socket(fileno=fd)
    parent = os.getppid()
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a reward started and left behind becomes our child when its parent dies
    warm_up()
    gc.freeze()  # the children share these pages as long as no collector writes into them
    pids: dict[int, int] = {}
    while os.getppid() == parent:
        if not select.select([orders], [], [], _PARENT_CHECK_S)[0]:
            continue
        order, fds, _, _ = socket.recv_fds(orders, 256, 1)  # SEQPACKET: one order a packet, never two or a half
        if not order:
            break
        match json.loads(order):
            case {"fork": int(key), "memory_mb": int(memory_mb)}:
                assert "torch" not in sys.modules, "the fork server of the rewards must stay without torch"
                pids[key] = _fork(fds[0], orders, memory_mb, prctl)
            case {"reap": int(key)}:
                if key in pids:  # otherwise a child of the server before this one, dead with it
                    _reap(pids.pop(key))
            case unknown:
                raise AssertionError(unknown)
    for pid in pids.values():
        _reap(pid)


def _fork(fd: int, orders: socket.socket, memory_mb: int, prctl: Callable[[int, int], int]) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid:
        os.close(fd)
        os.setpgid(pid, pid)  # here and in the child: whoever comes first, the group is there before it is needed
        return pid
    try:
        os.setpgid(0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == server:  # else it died before prctl, and no signal will come
            orders.close()
            resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash must not write gigabytes of core files
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):  # a reward that prints must not fill the terminal, or wait for input
                os.dup2(null, standard)
            _score_batches(socket.socket(fileno=fd))
    finally:
        os._exit(1)  # never back into the server's loop; threads that a reward left behind end here too


def _reap(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):  # nobody is left in the group
        while True:
            os.waitpid(-pid, 0)


def _score_batches(channel: socket.socket) -> None:
    """A child's life: a batch of completions a line, one line back for each as soon as it is scored."""
    _send(channel, {"ready": os.getpid()})
    for line in channel.makefile("rb"):
        order = json.loads(line)
        scorer, why = _loaded(Rule(*order["rule"]))
        _send(channel, {"loaded": why})
        for completion, answer in order["items"]:
            try:
                scored = judge(scorer, RewardItem(completion, answer)) if scorer else Scored(None, why)
            except MemoryError:  # what filled the memory may stay: let the next child start empty
                _send(channel, {"value": None, "why": "it ran out of memory", "leaves": True})
                return
            _send(channel, {"value": scored.value, "why": scored.why})


@cache  # failures too: an import is tried once in a child's life
def _loaded(rule: Rule) -> tuple[Callable[[str, str], float] | None, str | None]:
    """The reward's function, or why there is none."""
    try:
        return load(rule), None
    except UserError as error:
        return None, str(error)
    except BaseException as error:
        return None, f"reward {rule.kind}: its import raised {describe(error)}; mend the module"


def _send(channel: socket.socket, message: Message) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""Memory that threads share: what one of them has freed serves the next."""

import subprocess
import sys

import pytest

THREADS = """
import sys, threading
import psutil
from service.processes import share_arenas

if sys.argv[1] == "shared":
    share_arenas()
turn, over, kept = threading.Lock(), threading.Event(), []

def work():
    with turn:
        blocks = [b"x" * 100_000 for _ in range(1000)]
        kept.append(b"x" * 100_000)  # the last one: what lies before it can't be given back
        del blocks
    over.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
while len(kept) < len(threads) or turn.locked():
    over.wait(0.01)
print(psutil.Process().memory_info().rss)
over.set()
"""


BLOCKS = """
import resource, sys
from service.processes import keep_large_blocks

if sys.argv[1] == "kept":
    keep_large_blocks()
bytearray(b"x") * 50_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(b"x") * 50_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(program: str, word: str) -> int:
    """The number that a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, word], capture_output=True, text=True, check=True, env={})
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="arenas are glibc's")
def test_threads_that_take_turns_hold_the_memory_of_two():
    apart, shared = printed(THREADS, "apart"), printed(THREADS, "shared")
    print(f"8 threads: {apart / 1e6:.0f} MB apart, {shared / 1e6:.0f} MB shared")
    assert apart > 700e6
    assert shared < 350e6


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's memory")
def test_large_blocks_are_not_made_of_new_pages_each_time():
    returned, reused = printed(BLOCKS, "returned"), printed(BLOCKS, "kept")
    print(f"20 blocks of 50 MB: {returned} page faults, {reused} with memory that is used again")
    assert reused < returned / 10  # pages may be large ones

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


@pytest.mark.skipif(sys.platform != "linux", reason="arenas are glibc's")
def test_threads_that_take_turns_hold_the_memory_of_two():
    def resident(word: str) -> int:
        done = subprocess.run([sys.executable, "-c", THREADS, word], capture_output=True, text=True, check=True, env={})
        return int(done.stdout)

    apart, shared = resident("apart"), resident("shared")
    print(f"8 threads: {apart / 1e6:.0f} MB apart, {shared / 1e6:.0f} MB shared")
    assert apart > 700e6
    assert shared < 350e6

"""Which core a prompt goes to, and what is said of cores that are silent or have died."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from service.engine.cores import Cores
from service.health import watch


def test_prompts_are_spread_evenly_over_the_cores() -> None:
    counts = Counter(Cores(None, 4).of([number, 7, 9], []) for number in range(4000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert min(counts.values()) > 900


def test_the_same_question_of_different_pictures_is_spread_too() -> None:
    cores = {Cores(None, 4).of([1, 2, 3], [f"image-{number}"]) for number in range(40)}
    assert cores == {0, 1, 2, 3}


def test_a_prompt_has_the_same_core_in_every_process() -> None:
    """Python's own hash of a text would differ."""
    code = "from service.engine.cores import Cores; print([Cores(None, 5).of([n], [str(n)]) for n in range(20)])"
    lines = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert lines == {f"{[Cores(None, 5).of([n], [str(n)]) for n in range(20)]}\n"}


class Client:
    """What is read of vLLM's client: pings that some cores never answer, and processes that have ended."""

    def __init__(
        self, *, answering: int, cores: int, ended: dict[str, int], failed: str | None, processes: Sequence[Any] = ()
    ) -> None:
        self.errored = False
        manager = SimpleNamespace(failed_proc_name=failed, finished_procs=lambda: ended, processes=processes)
        identities = [number.to_bytes(2, "little") for number in range(cores)]

        async def call(method: str, engine: bytes) -> bool:
            assert method == "is_sleeping"
            if int.from_bytes(engine, "little") >= answering:
                await asyncio.Event().wait()
            return False

        self.engine_core = SimpleNamespace(
            core_engines=identities, _call_utility_async=call, resources=SimpleNamespace(engine_manager=manager)
        )


@pytest.mark.parametrize(
    ("cores", "answering", "words"), [(1, 0, ""), (2, 1, ": core 1 of 0 to 1"), (3, 1, ": core 1, 2 of 0 to 2")]
)
def test_cores_that_owe_an_answer_are_named(cores: int, answering: int, words: str) -> None:
    engine = Cores(Client(answering=answering, cores=cores, ended={}, failed=None), cores)

    async def ping() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine.ping()

    asyncio.run(ping())
    assert engine.silent == words
    assert engine.dead is None


@pytest.mark.parametrize(
    ("cores", "ended", "failed", "words"),
    [
        (1, {"EngineCore": -9}, None, "the engine is dead"),
        (2, {"EngineCore_DP1": -9}, None, "the engine is dead: core 1 of 0 to 1"),
        # The first to die, and not the others, which vLLM ended for it.
        (2, {"EngineCore_DP0": 0, "EngineCore_DP1": -9}, "EngineCore_DP1", "the engine is dead: core 1 of 0 to 1"),
    ],
)
def test_the_core_that_died_first_is_named(cores: int, ended: dict, failed: str | None, words: str) -> None:
    assert Cores(Client(answering=cores, cores=cores, ended=ended, failed=failed), cores).dead == words


@pytest.mark.parametrize(
    ("code", "is_frozen"), [(["import time; time.sleep(60)"], True), (["while True: pass"], False),
                            (["while True: pass", "import time; time.sleep(60)"], True)]
)  # fmt: skip
def test_a_core_that_is_silent_and_computes_is_not_frozen(code: list[str], is_frozen: bool) -> None:
    """A service of two cores is frozen when one is."""
    processes = [subprocess.Popen([sys.executable, "-c", words]) for words in code]
    client = Client(answering=0, cores=len(code), ended={}, failed=None, processes=processes)

    async def verdict() -> str:
        try:
            async with asyncio.timeout(10):
                return await watch(cast(Any, Cores(client, len(code))), 2.0)
        except TimeoutError:
            return "it works"

    try:
        assert ("frozen" in asyncio.run(verdict())) == is_frozen
    finally:
        for process in processes:
            process.kill()
            process.wait()

"""The paper's step, 256 prompts with 8 completions of 16,384 tokens, on an engine that answers at the recipe's rate.

Client, gathering, judging, records, admission and routes are the real ones; only the engine makes tokens of chance.
Time goes faster than the clock, and every limit is divided by that.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trainer.recipe import BaseConfig, CapabilityConfig, MiniatureData, Recipe, RewardConfig
from trainer.recipe.file import load, write_resolved
from trainer.recipe.limits import limits

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

SPEED = 400.0
"""Two cores make the numbers faster than that, so the waits are those of the engine, not of Python."""
MIB = 2**20


def paper(**rollout: int) -> Recipe:
    """Its lengths and numbers, on the miniature's questions and tokenizer."""
    recipe = load(Path("recipes/paper-copd2.toml"))
    return recipe.model_copy(
        update={
            "base": BaseConfig(name="miniature", dtype="float32"),
            "capabilities": {
                name: CapabilityConfig(
                    data=MiniatureData(type="miniature", name="text"), reward=RewardConfig(kind="exact")
                )
                for name in recipe.capabilities
            },
            "rollout": recipe.rollout.model_copy(update=rollout),
        }
    )


@contextmanager
def serving(folder: Path, recipe: Path, rate: float) -> Iterator[tuple[str, int]]:
    """The service's address and process."""
    derived = limits(load(recipe))
    words = [
        sys.executable, "-m", "tests.soak.rated_service", str(recipe), f"--rate={rate}", f"--speed={SPEED}",
        f"--request-timeout-s={derived.request_s / SPEED}", f"--max-wait-s={derived.wait_s / SPEED}",
        f"--store={folder / 'store'}", f"--runs={folder / 'runs'}", f"--adapter-cache={folder}", "--port=0",
    ]  # fmt: skip
    with (folder / "service.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 120
            while not (url := re.search(r"(http://\S+) serves", (folder / "service.log").read_text())):
                assert process.poll() is None, (folder / "service.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield url[1], process.pid
        finally:
            process.terminate()


def step(folder: Path, recipe: Path, url: str) -> subprocess.CompletedProcess[str]:
    words = ["-m", "tests.soak.rated_step", str(recipe), url, str(folder / "runs"), f"--speed={SPEED}"]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=600, check=False)


def resident(pid: int, of: str = "VmRSS") -> int:
    """MiB of a process now; `VmHWM`: the most that it has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(of))) // 1024


def test_the_papers_step_gets_done_in_bounded_memory(tmp_path: Path) -> None:
    recipe = paper()
    path = write_resolved(recipe, tmp_path)
    with serving(tmp_path, path, recipe.budget.tokens_per_s) as (url, pid):
        before = resident(pid)
        done = step(tmp_path, path, url)
        service = resident(pid, of="VmHWM")
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured, f"service {before} MiB, at most {service} MiB")
    assert measured["tokens"] == 2 * 256 * 8 * 16_384
    assert measured["is_equal"]
    derived = limits(recipe)
    # What a worker holds is its batch; a service holds the answers on their way, and what it remembers.
    assert measured["peak_mib"] - measured["before_mib"] < derived.batch_bytes / MIB
    assert service - before < 2048 + derived.scores_bytes / MIB


def test_an_engine_far_below_the_rate_is_an_error_with_its_reason(tmp_path: Path) -> None:
    recipe = paper(prompts=32)
    path = write_resolved(recipe, tmp_path)
    with serving(tmp_path, path, recipe.budget.tokens_per_s / 50) as (url, _):
        done = step(tmp_path, path, url)
    assert done.returncode == 1
    assert re.search(r"ServiceError: .*(did not end the request within|no room within|no answer within)", done.stderr)

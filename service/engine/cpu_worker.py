"""vLLM's worker on CPU, but for one thing: what a seeded request samples while its prompt is not yet whole.

Where prompts do not fit into one step of the engine, vLLM samples a token for every piece of one, throws it away and
turns a seeded request's generator back. Generators on CPU do not turn back, and the engine dies. Here such rows are
sampled without their generators, which then are where they were.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker


class CpuWorker(CPUWorker):
    """Loaded by name inside the engine (`--worker-cls`)."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        with _left_out(self.model_runner):
            return super().sample_tokens(grammar_output)


@contextmanager
def _left_out(runner: Any) -> Generator[None]:
    """The generators of the step's unfinished prompts."""
    generators: dict[int, Any] = runner.input_batch.generators
    unfinished = np.nonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])[0]
    kept = {row: generators.pop(row) for row in map(int, unfinished) if row in generators}
    try:
        yield
    finally:
        generators.update(kept)

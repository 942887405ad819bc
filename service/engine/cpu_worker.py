"""vLLM's worker on CPU, but for two things: memory of logits, which is used again, and what a seeded request samples
while its prompt is not yet whole.

Where prompts do not fit into one step of the engine, vLLM samples a token for every piece of one, throws it away and
turns a seeded request's generator back. Generators on CPU do not turn back, and the engine dies. Here such rows are
sampled without their generators, which then are where they were.
"""

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker

from service.processes import keep_large_blocks


class CpuWorker(CPUWorker):
    """Loaded by name inside the engine (`--worker-cls`)."""

    def load_model(self, **options: Any) -> None:
        super().load_model(**options)
        keep_large_blocks()  # not before: what loading needs for a moment would stay

    def sample_tokens(self, grammar_output: Any) -> Any:
        batch: Any = self.model_runner.input_batch
        # True for rows whose prompt is not whole: their token is thrown away.
        unfinished = np.nonzero(self.model_runner.discard_request_mask.np[: batch.num_reqs])[0]
        withheld = {row: batch.generators.pop(row) for row in map(int, unfinished) if row in batch.generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            batch.generators.update(withheld)

"""One real vLLM for the whole test session."""

import pytest

from adapters.base import locate


@pytest.fixture(scope="session")
def engine():
    from vllm import LLM

    return LLM(
        str(locate("miniature")),
        dtype="bfloat16",
        max_model_len=256,
        max_num_seqs=64,
        block_size=32,
        enforce_eager=True,
        limit_mm_per_prompt={"image": 1, "video": 1},
        seed=0,
    )

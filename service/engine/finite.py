"""Numbers that are not finite: they stay within the request that makes them, and are an error of it, never an answer.

Two ways lead from one request to another. A block of the KV cache is given back with what is in it, and attention
multiplies the rows of a block that are not written yet by 0: Inf * 0 is NaN. So blocks are zeroed when they are given
out. The other way is a step's shared product on CPU, see `cpu_lora`.

A token that was sampled from NaN is token 0, and looks like an answer. So vLLM counts the NaNs of each row of logits.
"""

from http import HTTPStatus
from typing import Any

from service.engine.outputs import fail_requests


class NotFiniteError(Exception):
    """The model's numbers overflowed for this request; the engine is well."""

    def __init__(self) -> None:
        # Not super(): below a class of vLLM stands beside it, whose beginning takes other arguments.
        Exception.__init__(self, "the model's numbers were not finite; ask again")


COUNT_NANS = {"VLLM_COMPUTE_NANS_IN_LOGITS": "1"}
"""The variable that `fail_corrupted` needs in the engine's process. It costs a look at each row of logits."""


def zero_new_blocks() -> None:
    """In each of vLLM's processes. vLLM does it for caches of mixed precision only, and has the kernels for all."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    assert isinstance(KVCacheConfig.needs_kv_cache_zeroing, property), "vLLM asks for it in another way"
    config: Any = KVCacheConfig
    config.needs_kv_cache_zeroing = property(lambda _: True)


def fail_corrupted(client: Any) -> None:
    """Requests of `client` with NaN among their logits end with `NotFiniteError`; under vLLM's own routes, with 503."""
    from vllm.exceptions import GracefulHTTPError

    class CorruptedError(NotFiniteError, GracefulHTTPError):
        """To vLLM's own routes an error with a status."""

        http_status = HTTPStatus.SERVICE_UNAVAILABLE

    fail_requests(client, lambda output: CorruptedError() if output.num_nans_in_logits else None)

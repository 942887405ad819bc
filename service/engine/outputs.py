"""What vLLM's client is told of a request, looked at before the request hears of it."""

from collections.abc import Callable, Sequence
from typing import Any


def fail_requests(client: Any, error_of: Callable[[Any], Exception | None]) -> None:
    """From now on a request of `client` ends with the error that `error_of` gives for one of its outputs."""
    from vllm.v1.engine.async_llm import InputStreamError

    processor = client.output_processor
    process = processor.process_outputs

    def checked(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        for output in outputs:
            state = processor.request_states.get(output.request_id)
            if state is not None and (error := error_of(output)) is not None:
                # The only error that vLLM passes on as it is and that ends its request in the engine as well. What
                # comes for the request after it is dropped by the queue.
                state.queue.put(InputStreamError(error))
        return process(outputs, *args, **kwargs)

    processor.process_outputs = checked

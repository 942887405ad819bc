"""What the routes work with: the engine, what it holds, and what guards it. Built once, when the service starts."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from adapters.store import Store
from service.engine.vllm import Engine, LoadedAdapter
from service.http.admission import Admission
from service.http.bodies import Bodies
from service.http.metrics import Metrics
from service.inputs import Decoder
from service.mediastore import MediaStore
from service.publishing.fence import QueueFence
from service.publishing.publisher import Publisher
from service.publishing.registry import Registry, Served
from service.runs import Runs
from service.scoring import Scorer
from service.settings import Settings

# What one image or video is taken for before it is decoded. Only admission counts with it, so a guess is enough.
MEDIA_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ServiceState:
    settings: Settings
    engine: Engine
    store: Store
    registry: Registry
    publisher: Publisher
    fence: QueueFence | None
    """None where no queue was named."""
    runs: Runs
    scorer: Scorer
    decoder: Decoder
    media: MediaStore
    admission: Admission
    bodies: Bodies
    metrics: Metrics


async def state_of(request: Request) -> ServiceState:
    # async, though it waits for nothing: FastAPI takes a plain function to a thread, for every request.
    return request.app.state.service


State = Annotated[ServiceState, Depends(state_of)]
"""The argument of a route that gets the state."""


def adapter_of(served: Served) -> LoadedAdapter | None:
    """The engine's own handle; None is the base."""
    assert served.handle is None or isinstance(served.handle, LoadedAdapter)
    return served.handle

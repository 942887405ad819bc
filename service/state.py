"""What the routes work with: the engine, what it holds, and what guards it. Built once, when the service starts."""

from dataclasses import dataclass

from adapters.store import Store
from service.engine.vllm import Engine, LoadedAdapter
from service.http.admission import Admission
from service.http.metrics import Metrics
from service.inputs import Decoder, Vocabulary
from service.media import Pixels
from service.mediastore import MediaStore
from service.publishing.publisher import Publisher
from service.publishing.registry import Registry, Served
from service.runs import Runs
from service.scoring import Scorer
from service.settings import Settings

MEDIA_TOKENS = 1024  # what one image or video is taken for before it is decoded


@dataclass(frozen=True, slots=True)
class ServiceState:
    settings: Settings
    engine: Engine
    store: Store
    registry: Registry
    publisher: Publisher
    runs: Runs
    scorer: Scorer
    pixels: Pixels
    decoder: Decoder
    vocabulary: Vocabulary
    media: MediaStore
    admission: Admission
    metrics: Metrics
    base_name: str
    base_digest: str


def adapter_of(served: Served) -> LoadedAdapter | None:
    """The engine's own handle; None is the base."""
    assert served.handle is None or isinstance(served.handle, LoadedAdapter)
    return served.handle

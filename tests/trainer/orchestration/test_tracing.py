"""Spans of a step, as a collector gets them over HTTP: a real queue, store and update; an engine is not needed."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import numpy as np
import pytest
from fastapi import FastAPI, Query, Response
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from adapters.store import Store
from clients.client import AsyncClient
from service import schemas, tracing
from service.http import problems
from service.http.metrics import Metrics
from service.publishing.fence import QueueFence
from service.routes import adapters as adapter_routes
from service.routes import runs as run_routes
from service.runs import Runs
from service.wire import encode_logprobs
from tests.adapters.files import BASE
from tests.clients.test_client import serving
from tests.service.publishing.publish_once import make_publisher
from tests.service.recording import RecordingLoader
from tests.trainer.orchestration.test_scheduler import enqueue, kinds, run_of
from tests.trainer.update.packs import prompt, random_rollout
from trainer.loop import NATIVE, Batch, StepContext
from trainer.orchestration.heartbeat import Heartbeat
from trainer.orchestration.scheduler import StepScheduler
from trainer.orchestration.watchdog import Patience, Watchdog
from trainer.parts import loss_term
from trainer.plan.steps import Step
from trainer.queue.client import Queue
from trainer.queue.server import start
from trainer.recipe import LoraConfig, LossConfig, OptimiserConfig
from trainer.rollout.sample import score
from trainer.update.learner import Learner

PARENTS = {"step": None, "gather": "step", "score": "gather", "learn": "step", "publish": "step"}


class Collector(ThreadingHTTPServer):
    """Takes spans as any collector does: OTLP over HTTP, in protobuf."""

    def __init__(self) -> None:
        spans: list[Span] = []
        services: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    services.update(
                        attribute.value.string_value
                        for attribute in resource.resource.attributes
                        if attribute.key == "service.name"
                    )
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.spans, self.services = spans, services


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Generator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        monkeypatch.setenv(tracing.ENDPOINT, f"http://127.0.0.1:{collector.server_address[1]}")
        tracing.provider.cache_clear()
        yield collector
        tracing.provider().shutdown()
        tracing.provider.cache_clear()
        collector.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    values = {attribute.key: attribute.value for attribute in span.attributes}
    return {key: value.string_value or value.int_value for key, value in values.items()}


def service(store: Store, folder: Path, url: str, learner: Learner) -> FastAPI:
    """The service's own routes over a store, fenced by the queue. For the engine, which is asked for scores and for the
    canary, the first are 0 and the second is the learner's."""

    async def canary(handle: object) -> list[float]:
        return learner.canary("text")

    registry, publisher = make_publisher(
        store, RecordingLoader(), folder / "cache", canary=canary, fence=QueueFence(url, store)
    )
    app = FastAPI()
    problems.install(app)
    app.include_router(adapter_routes.router)
    app.include_router(run_routes.router)
    app.state.service = SimpleNamespace(
        store=store, registry=registry, publisher=publisher, runs=Runs(folder / "runs"), metrics=Metrics()
    )

    @app.post("/logprobs")
    async def logprobs(request: schemas.LogprobsRequest, adapter: Annotated[list[str], Query()]) -> Response:
        lengths = [len(cast(list[int], sequence.completion)) for sequence in request.sequences]
        sequences = [
            schemas.ScoredSequence(token_ids=[1] * length, logprobs=[0.0] * length, prompt_tokens=3)
            for length in lengths
        ]
        scores = [schemas.AdapterScores(adapter=name, revision=0, digest="d", sequences=sequences) for name in adapter]
        body = encode_logprobs(schemas.LogprobsResponse(adapters=scores))
        return Response(body, media_type=schemas.SAFETENSORS)

    return app


async def gather(step: Step, context: StepContext) -> Batch:
    rollouts = [random_rollout(prompt("text"), [6, 3], np.random.default_rng(0))]
    await score(context.client, ["text@0", "image@0"], rollouts)
    return Batch((loss_term(NATIVE, rollouts),), {NATIVE: rollouts}, {"native/reward": 0.5})


def test_a_step_is_a_trace_of_its_parts(policy: Any, collector: Collector, tmp_path: Path) -> None:
    run = run_of("budget.prefetch=0")
    learner = Learner(
        policy, base=BASE, seed=1, lora=LoraConfig(rank=8, alpha=16), loss=LossConfig(), optimiser=OptimiserConfig(),
        budget=2048,
    )  # fmt: skip

    async def work(queue: Queue, address: str) -> None:
        heartbeat = Heartbeat(Queue(queue.url), "worker")
        heartbeat.start()
        async with AsyncClient(address) as client:
            await client.fork("text", "base")
            enqueue(queue, run)
            context = StepContext(
                client, cast(Any, None), {}, decode=str, seed=1, sampling=run.recipe.rollout, loss=LossConfig()
            )
            scheduler = StepScheduler(
                run, ["text"], name="worker", queue=queue, heartbeat=heartbeat, context=context, learner=learner,
                watchdog=Watchdog(queue, heartbeat, run.id, "worker", Patience.in_all(60), done=lambda: 0),
                gather=gather,
            )  # fmt: skip
            try:
                running = asyncio.create_task(scheduler.run())
                while not running.done() and not kinds(queue, "step") and not kinds(queue, "failed"):
                    await asyncio.sleep(0.05)
                scheduler.stop()
                await running
            finally:
                heartbeat.end()
                heartbeat.join()

    with start(tmp_path / "queue") as server, Store(tmp_path / "store", BASE) as store:
        with serving(service(store, tmp_path, server.url, learner)) as address:
            queue = Queue(server.url)
            asyncio.run(asyncio.wait_for(work(queue, address), 60))
            assert kinds(queue, "failed") == []
        queue.close()
    tracing.provider().force_flush()  # as a worker's end does: what waits is sent

    steps = [span for span in collector.spans if attributes(span)["revision"] == "text@1"]
    names = {span.span_id: span.name for span in steps}
    assert {span.name: names.get(span.parent_span_id) for span in steps} == PARENTS
    assert len(steps) == len(PARENTS)
    assert len({span.trace_id for span in steps}) == 1
    expected = {"run": run.id, "branch": "text", "step": 1, "revision": "text@1"}
    assert all(attributes(span) == expected for span in steps if span.name != "score")
    assert attributes(next(span for span in steps if span.name == "score"))["models"] == "text@0, image@0"
    assert collector.services == {"coevo-worker"}


def test_a_failure_is_in_its_span_and_in_those_around_it(collector: Collector) -> None:
    with pytest.raises(ZeroDivisionError), tracing.span("step", branch="text"), tracing.span("learn"):
        raise ZeroDivisionError("division by zero")
    tracing.provider().force_flush()
    failures = {span.name: (span.status.code, span.status.message) for span in collector.spans}
    assert failures == dict.fromkeys(("step", "learn"), (2, "ZeroDivisionError: division by zero"))


def test_what_waits_is_sent_when_the_process_ends(collector: Collector) -> None:
    program = "from service.tracing import span\nwith span('step', step=1): pass"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert [span.name for span in collector.spans] == ["step"]


def test_without_a_collector_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    program = (
        "import sys; from service.tracing import span\n"
        "with span('step', step=1): pass\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"

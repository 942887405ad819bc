"""What the service counts, for Prometheus.

Labels are few and bounded: a branch, never a revision; a route's template, never its path; a word of ours for why.
Names of branches that come after the first hundred are counted together. Left out: the engine's own metrics, which
vLLM keeps in the default registry; `render` shows them along.
"""

import time
from collections.abc import Callable
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.admission import Admission
from service.http.problems import TYPE_HEADER

CONTENT_TYPE = CONTENT_TYPE_LATEST

TokenKind = Literal["prompt", "generated", "scored"]

_MOST_BRANCHES = 100  # Prometheus keeps every label's series for ever, and anybody with the key can begin branches
_REST = "other"
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # to the request's time limit


class Metrics:
    """A service's numbers, in a registry of its own: vLLM fills the default one, and tests have several services."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._branches: set[str] = set()
        self._tokens = Counter("coevo_tokens", "Tokens read, made and scored.", ["branch", "kind"], registry=registry)
        self._seconds = Histogram(
            "coevo_request_seconds",
            "From the request's head to the answer's end.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._publishes = Counter("coevo_publishes", "Revisions published.", ["branch"], registry=registry)
        self._rejections = Counter("coevo_rejections", "Answers that are errors.", ["type"], registry=registry)
        self._canary = Gauge(
            "coevo_canary_difference",
            "Mean difference to the publisher's log-probs, last publish.",
            ["branch"],
            registry=registry,
        )
        self.cache_hits = Counter("coevo_score_cache_hits", "Scores that were remembered.", registry=registry)
        self.cache_misses = Counter("coevo_score_cache_misses", "Scores that were computed.", registry=registry)
        self.resident = Gauge("coevo_resident_revisions", "Revisions that the engine holds.", registry=registry)
        self.restarts = Gauge("coevo_engine_restarts", "Restarts by the parent, last ten minutes.", registry=registry)

    def watch(self, admission: Admission) -> None:
        """The queue's depths are read when somebody asks for them."""
        for name, help, read in (
            ("coevo_running_requests", "Requests in the engine.", lambda: admission.requests),
            ("coevo_running_tokens", "Their tokens, estimated.", lambda: admission.tokens),
            ("coevo_waiting_requests", "Requests that wait for room.", lambda: admission.waiting),
        ):
            Gauge(name, help, registry=self.registry).set_function(read)

    def watch_queue(self, is_up: Callable[[], bool]) -> None:
        """Only where there is one."""
        Gauge("coevo_queue_up", "Whether the queue answers.", registry=self.registry).set_function(is_up)

    def count_tokens(self, branch: str, kind: TokenKind, count: int) -> None:
        self._tokens.labels(self._branch(branch), kind).inc(count)

    def count_publish(self, branch: str, canary_difference: float | None) -> None:
        self._publishes.labels(self._branch(branch)).inc()
        if canary_difference is not None:
            self._canary.labels(self._branch(branch)).set(canary_difference)

    def count_problem(self, type: str) -> None:
        """An answer of ours that is an error; its types are a fixed few."""
        self._rejections.labels(type).inc()

    def observe(self, route: str, status: int, seconds: float) -> None:
        """`status` by its class: `2xx`."""
        self._seconds.labels(route, f"{status // 100}xx").observe(seconds)

    def render(self) -> bytes:
        """Ours, then the engine's and the process's."""
        return generate_latest(self.registry) + generate_latest(REGISTRY)

    def _branch(self, name: str) -> str:
        branch = name.partition("@")[0]  # a label for every revision would never end
        if len(self._branches) < _MOST_BRANCHES:
            self._branches.add(branch)
        return branch if branch in self._branches else _REST


class Timed:
    """Plain ASGI around the application: how long every answer took, by route, and the errors by type."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what the server answers when nothing was sent

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                type = dict(message["headers"]).get(TYPE_HEADER.encode())
                if type is not None:
                    self._metrics.count_problem(type.decode())
            await send(message)

        began = time.monotonic()
        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", _REST)  # the router puts it there; unknown paths have none
            self._metrics.observe(route, status, time.monotonic() - began)

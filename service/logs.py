"""Logs of every process of ours, and of the libraries in it: a line each, for people or as JSON.

On a terminal a line is for people; elsewhere (a file, a container) it is a JSON object. `COEVO_LOG` chooses: `console`
or `json`. Fields beside the message: `time`, `level`, `logger`; and where they are known `run`, `worker`, `branch`,
`step`, `revision`: bound with `structlog.contextvars`, or for the whole process here.

Left out: what `coevo run` and other commands print for the person who typed them, and the one line of a mistake.
"""

import logging
import os
import sys
from typing import IO, Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from adapters.errors import UserError

VARIABLE = "COEVO_LOG"
_OURS = ("adapters", "clients", "coordinator", "service", "trainer", "worker")
"""Loggers that are heard from INFO on; a library's INFO is mostly a line a request."""

_process_fields: dict[str, object] = {}
"""Not a context variable: threads begin without those of the thread that made them."""


def set_up(**fields: object) -> None:
    """At a process's start, and again where libraries have brought handlers of their own meanwhile."""
    _process_fields.update(fields)
    handler = _Stderr()
    handler.setFormatter(formatter(is_json=_is_json()))
    for earlier in [each for each in logging.root.handlers if isinstance(each, _Stderr)]:
        logging.root.removeHandler(earlier)
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    # Its warnings are of options that nobody chose here.
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
    # Those of vLLM, transformers and uvicorn: one line has one form, whoever writes it.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True
    logging.captureWarnings(True)


def formatter(*, is_json: bool) -> structlog.stdlib.ProcessorFormatter:
    time = structlog.processors.TimeStamper(fmt="iso" if is_json else "%H:%M:%S", utc=is_json, key="time")
    known: list[Processor] = [
        _begin,
        time,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.ExtraAdder(),
    ]
    no_color = os.environ.get("NO_COLOR")  # no-color.org
    rendered: list[Processor] = (
        [structlog.processors.format_exc_info, _ordered, structlog.processors.JSONRenderer()]
        if is_json
        else [_compact, structlog.dev.ConsoleRenderer(**_PLAIN, colors=sys.stderr.isatty() and not no_color)]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=known,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _without_private, *rendered],
    )


_PLAIN: dict[str, Any] = {
    "timestamp_key": "time",
    "pad_event_to": 0,
    "pad_level": False,
    # With its frames and without their variables: these may be prompts of megabytes.
    "exception_formatter": structlog.dev.plain_traceback,
}


def _is_json() -> bool:
    form = os.environ.get(VARIABLE) or ("console" if sys.stderr.isatty() else "json")
    if form not in ("console", "json"):
        raise UserError(f"{VARIABLE}={form}: no such form; take json or console")
    return form == "json"


def _begin(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    event.update(_process_fields)
    return event


def _without_private(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Ray, which vLLM imports where it is installed, puts a field of its own on every record of the process."""
    return {name: value for name, value in event.items() if not name.startswith("_")}


def _ordered(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """In an order that is easy to read: when, how bad, who, where; last what."""
    first = ("time", "level", "logger", "run", "worker", "branch", "step", "revision")
    last = ("event", "exception")
    names = (*first, *(name for name in event if name not in (*first, *last)), *last)
    return {name: event[name] for name in names if name in event}


def _compact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A terminal shows one process: its name stands at the front, and what is the same in all lines is left out."""
    event["event"] = f"{event.pop('logger')}: {event['event']}"
    for name in _process_fields:
        event.pop(name, None)
    return event


class _Stderr(logging.StreamHandler[Any]):
    """The error stream as it is when something is written, as `logging.lastResort` takes it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> IO[str]:  # type: ignore[override]
        return cast(IO[str], sys.stderr)

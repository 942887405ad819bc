"""What goes wrong between a client and the service, as one error; and when it is worth another try.

Tried again until one deadline: connections refused, reset or cut off, 503, 507, and 429 when its Retry-After says.
Nothing else is, and a pause that would end after the deadline is not begun. Every request may be sent twice.

The loop is not stamina's: the pauses come from the server and the deadline, so it would only count, and it looks at
its own time limit after a pause, not before.
"""

import logging
import random
import time
from typing import Any

import httpx

from adapters.errors import UserError

# Doubled from one to the other: a service that was only restarted is found soon, and a dead one is not hammered.
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_SAY_EVERY_S = 30.0
"""Between two lines about tries of one call: a service that is away for long would fill a log."""

TOO_SLOW = "too-slow"
"""The type of an error of a service that was reached and did not answer in the call's time."""

log = logging.getLogger(__name__)


class ServiceError(Exception):
    """A response that is an error, or none at all. `type` is stable; `more` holds the response's other members."""

    def __init__(self, type: str, status: int | None, detail: str) -> None:
        super().__init__(type, status, detail)  # all three, or it cannot be pickled
        self.type = type
        self.status = status
        self.detail = detail
        self.more: dict[str, Any] = {}
        self.retry_after_s: float | None = None

    @property
    def is_away(self) -> bool:
        """Nobody was there, or who answered was not ready or has a full disk: no fault of what was asked."""
        return (self.status is None and self.type != TOO_SLOW) or self.status in (502, 503, 507)

    def __str__(self) -> str:
        return f"{self.detail} ({self.type})"


class RefusedError(ServiceError, UserError):
    """One that the caller can mend."""


def error_of(type: str, status: int | None, detail: str) -> ServiceError:
    """4xx is the caller's to mend, but for 429; so is a service that is not there."""
    mendable = status is None or (400 <= status < 500 and status != 429)
    return (RefusedError if mendable else ServiceError)(type, status, detail)


class RetryDeadline:
    """One call's time, and how long to pause between its tries."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._tries = 0
        self._say_at = 0.0

    def left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def pause_after(self, error: Exception) -> float:
        """Raises when there is no point, or no time, in trying again."""
        if not _is_passing(error):
            if isinstance(error, ServiceError):
                raise error
            if isinstance(error, httpx.TransportError):
                raise error_of("invalid", None, f"{self._url}: cannot be asked; write http://HOST:PORT") from None
            raise ServiceError("bad-answer", None, f"{self._url}: the answer cannot be decoded") from None
        self._tries += 1
        # The exponent is bounded, as a wait of hours has thousands of tries, and their power is no float any more.
        longest = min(_FIRST_PAUSE_S * 2 ** min(self._tries - 1, 10), _LONGEST_PAUSE_S)
        # At random: all workers lose the service in the same moment, and need not come back in the same one.
        pause_s = random.uniform(longest / 2, longest)
        if isinstance(error, ServiceError):
            pause_s = max(pause_s, error.retry_after_s or 0.0)
        if pause_s >= self.left_s():
            raise self._given_up(error) from error
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + _SAY_EVERY_S
            log.info("%s: %s; trying again for %.0f s", self._url, _words(error), self.left_s())
        return pause_s

    def _given_up(self, error: Exception) -> ServiceError:
        if isinstance(error, ServiceError):
            final = ServiceError(error.type, error.status, f"{error.detail}; gave up after {self._timeout_s:g} s")
            final.more, final.retry_after_s = error.more, error.retry_after_s
            return final
        reason = f"no answer within {self._timeout_s:g} s, {_words(error)}"
        if isinstance(error, TimeoutError | httpx.ReadTimeout):  # not of connecting: somebody has taken the request
            return ServiceError(TOO_SLOW, None, f"{self._url}: {reason}; look whether its engine still works")
        return error_of("no-answer", None, f"{self._url}: {reason}; start the service, or mend COEVO_SERVICE_URL")


def _is_passing(error: Exception) -> bool:
    if isinstance(error, ServiceError):
        return error.status in (429, 503, 507)  # somebody may free some of a full disk
    # These two are transport errors by class, but they say that our own request is wrong.
    is_ours = isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
    return isinstance(error, httpx.TransportError | TimeoutError) and not is_ours


def _words(error: Exception) -> str:
    match error:
        case ServiceError():
            return f"status {error.status} ({error.type})"
        case httpx.ConnectError():
            return "connection refused"
        case httpx.TimeoutException() | TimeoutError():
            return "timed out"
        case _:
            return "connection lost"

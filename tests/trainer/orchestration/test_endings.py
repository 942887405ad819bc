"""Which ends of a worker or coordinator are a person's to mend, and which are worth another start."""

import json

import pytest

from adapters.errors import UserError
from clients.retries import RefusedError, ServiceError
from service import logs
from trainer.orchestration.endings import MISTAKE, UNAVAILABLE, UNFORESEEN, status_of
from trainer.queue.client import QueueAwayError

ENDS = (
    (UserError("rollout.promts: no such key"), MISTAKE),
    (RefusedError("unauthorised", 401, "another key"), MISTAKE),
    (RefusedError("other-base", None, "serves another base"), MISTAKE),
    (RefusedError("no-answer", None, "start the service"), UNAVAILABLE),
    (ServiceError("disk-full", 507, "no room"), UNAVAILABLE),
    (ServiceError("internal", 500, "a bug of the service"), UNAVAILABLE),
    (ServiceError("busy", 429, "gave up"), UNAVAILABLE),
    (QueueAwayError("the queue server does not answer"), UNAVAILABLE),
)


@pytest.mark.parametrize(("error", "status"), ENDS, ids=[str(error) for error, _ in ENDS])
def test_only_what_a_person_can_mend_is_a_mistake(
    error: Exception, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise error

    assert status_of("worker", work) == status
    assert capsys.readouterr().err == f"worker: {error}\n"


def test_what_nobody_foresaw_leaves_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    assert status_of("worker", lambda: {}["key"]) == UNFORESEEN
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["event"]) == ("error", "worker ended")
    assert line["exception"].endswith("KeyError: 'key'")


def test_work_that_ends_well_says_its_own_status() -> None:
    assert status_of("worker", lambda: 0) == 0

"""`coevo status` as a person starts it."""

import pytest

from clients.cli import main


def test_a_service_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COEVO_SERVICE_URL", "http://127.0.0.1:9")
    assert main(["status", "small-1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "start the service, or mend COEVO_SERVICE_URL" in message

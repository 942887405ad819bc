"""The event loop that the service runs on."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

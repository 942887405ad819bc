"""One folder and one page over it for the tests that only look; Chromium for all."""

import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.page.browser import Watched, chromium, launched
from tests.page.folder import write_demo


class Looking:
    """`coevo look` as a person types it, and where it is."""

    def __init__(self, folder: Path | str, port: int = 0) -> None:
        command = [sys.executable, "-m", "clients.cli", "look", str(folder), f"--port={port}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        match = re.search(r"(http://127\.0\.0\.1:(\d+))/", line)
        assert match is not None, line
        self.address, self.port, self.pid = match[1], int(match[2]), self._process.pid

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)


# Of a module: while Playwright is there its event loop runs in this thread, and other tests want one of their own.
@pytest.fixture(scope="module")
def browser():
    if chromium() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with launched() as browser:
        yield browser


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


@pytest.fixture(scope="package")
def looking(demo: Path) -> Generator[Looking]:
    looking = Looking(demo)
    yield looking
    looking.stop()


@pytest.fixture
def page_of(browser):
    """A fresh page at an address. Whatever it complains of fails the test."""
    pages: list[Watched] = []
    contexts = []

    def open(address: str, width: int = 1280, scheme: str = "light", **more: object) -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **more)
        contexts.append(context)
        pages.append(Watched(context.new_page(), address))
        return pages[-1]

    yield open
    for context in contexts:
        context.close()
    assert [complaint for page in pages for complaint in page.complaints] == []


@pytest.fixture
def page(page_of, looking: Looking) -> Watched:
    return page_of(looking.address)

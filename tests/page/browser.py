"""A real Chromium for tests: what it is called here, and what a page may not do."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 30_000


def chromium() -> str | None:
    """Debian's package, or another one of the path."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched() -> Generator[Browser]:
    with sync_playwright() as playwright:
        # No sandbox: as root there is none to be had, and the page is ours.
        flags = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=flags)
        yield browser
        browser.close()


class Watched:
    """A page whose complaints and whose requests elsewhere are kept."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self._said(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._requested(request.url))

    def _said(self, kind: str, text: str) -> None:
        # A refused request is also a line of the console; what it means is the page's to say.
        if kind in ("error", "warning") and "Failed to load resource" not in text:
            self.complaints.append(f"{kind}: {text}")

    def _requested(self, url: str) -> None:
        if not url.startswith((self.address, "blob:", "data:")):
            self.complaints.append(f"asked {url}")

    def show(self, screen: str) -> Page:
        """Opens a screen and waits until it stands there."""
        if self.page.url.startswith(self.address):
            self.page.evaluate("hash => { location.hash = hash; }", f"/{screen}")
        else:
            self.page.goto(f"{self.address}/#/{screen}")
        # By a selector: the page's policy refuses a text to evaluate, which a condition in JavaScript would be.
        self.page.wait_for_selector(f"main:not([aria-busy])[data-screen='/{screen.partition('?')[0]}'] h1")
        return self.page

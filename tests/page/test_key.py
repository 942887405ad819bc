"""The page behind a key, and over another service."""

from collections.abc import Generator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.http.auth import OPEN_PATHS, ApiKey
from service.look import folder_app
from service.routes import page as page_routes
from tests.page.conftest import Looking
from tests.serving import serving

pytestmark = pytest.mark.e2e
KEY = "a key of the test"


@pytest.fixture
def guarded(demo: Path) -> Generator[str]:
    """The routes as the service guards them."""
    app = ApiKey(folder_app(demo, None), SecretStr(KEY), {*OPEN_PATHS, *page_routes.open_paths()})
    with serving(app) as address:
        yield address


def test_a_wrong_key_is_refused_and_a_right_one_opens(page_of, guarded: str) -> None:
    page = page_of(guarded)
    shown = page.page
    shown.goto(f"{guarded}/#/run/demo-1/step/text/4/native/1")
    field = shown.get_by_label("Key", exact=True)
    field.fill("not the key")
    shown.keyboard.press("Enter")
    shown.get_by_text("The service refuses this key.").wait_for()
    field.fill(KEY)
    shown.keyboard.press("Enter")
    shown.wait_for_selector("h1:has-text('Prompt 2 of 8')")
    shown.wait_for_selector(".media img")  # pictures come with the key, too
    assert KEY not in shown.url
    assert shown.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_name_that_leads_here_from_elsewhere_reads_nothing(looking: Looking) -> None:
    assert httpx.get(f"{looking.address}/runs").status_code == 200
    assert httpx.get(f"{looking.address}/runs", headers={"host": "elsewhere.example"}).status_code == 421


def test_another_service_is_looked_at_with_the_key_of_the_environment(
    page_of, guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COEVO_API_KEY", KEY)
    looking = Looking(guarded)
    try:
        shown = page_of(looking.address).show("run/demo-1")
        shown.locator("#live[data-state=live]").wait_for()  # events are passed on as they come
        assert shown.evaluate("fetch('/adapters/text', {method: 'POST', body: '{}'}).then(r => r.status)") == 405
    finally:
        looking.stop()

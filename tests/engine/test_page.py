"""The page over a service with an engine: two models answer side by side."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engine.service_process import ServiceProcess
from tests.page.browser import Watched, chromium, launched

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")
def test_two_adapters_answer_a_picture_side_by_side(service: ServiceProcess, tmp_path: Path) -> None:
    with launched() as browser:
        watched = Watched(browser.new_page(), service.url)
        shown = watched.show("chat?a=base&b=merged")
        shown.get_by_label("Question").fill("37+red?")
        picture = tmp_path / "red.png"
        Image.fromarray(np.full((32, 32, 3), (200, 30, 30), np.uint8)).save(picture)
        shown.get_by_label("A picture or a clip").set_input_files(picture)
        shown.get_by_label("Most tokens").fill("12")
        shown.get_by_role("button", name="Ask both").click()
        for column in (0, 1):
            answer = shown.locator(".answer").nth(column)
            answer.locator("span").nth(2).wait_for()
            answer.locator("span").first.hover()
            assert shown.locator("#tip .tip-row").count() == 5  # the likeliest tokens, and what was said among them
        for column in (0, 1):
            shown.get_by_text("tokens in").nth(column).wait_for()
        shown.get_by_role("combobox", name="Right").select_option("base")
        shown.get_by_role("button", name="Ask both").click()
        shown.wait_for_selector(".answer span:not(.differs)")
        shown.locator(".ask button:not(:disabled)").wait_for()
        # One model says one thing, where the likeliest token is taken.
        assert shown.locator(".differs").count() == 0
        assert watched.complaints == []

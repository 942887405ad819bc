"""The page in a real Chromium, over folders that no engine has made."""

import re
from pathlib import Path

import pytest

from tests.page.conftest import Looking
from tests.page.folder import HOSTILE, RunWriter

pytestmark = pytest.mark.e2e
RUN = "run/demo-1"
SCREENS = [
    "",
    RUN,
    f"{RUN}/metrics",
    f"{RUN}/step/text/4",
    f"{RUN}/step/text/4/native/0",
    f"{RUN}/step/text/4/image/1",
    f"{RUN}/alarms",
    f"{RUN}/merge",
    f"{RUN}/revisions",
    f"{RUN}/chat",
]
AXE = Path(__file__).parent / "vendor/axe.min.js"
SERIOUS = ("serious", "critical")


def serious(page) -> list[str]:
    """What axe finds that keeps somebody out."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())  # past the page's policy, which lets no other script in
    violations = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
    return [
        f"{item['id']}: {node['html'][:160]}"
        for item in violations
        if item["impact"] in SERIOUS
        for node in item["nodes"]
    ]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_every_screen_is_quiet_fits_and_is_accessible(page_of, looking: Looking, width: int, scheme: str) -> None:
    page = page_of(looking.address, width, scheme)
    for screen in SCREENS:
        page.show(screen)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width, screen
        assert serious(page.page) == [], screen


def test_a_click_on_a_point_opens_the_rollouts(page) -> None:
    shown = page.show(RUN)
    plot = shown.locator(".chart .u-over").first
    plot.scroll_into_view_if_needed()
    plot.click(position={"x": 2, "y": 40})
    shown.wait_for_selector("main h1:has-text(', step')")
    assert re.search(r"#/run/demo-1/step/(text|image|video)/1$", shown.url)


def test_a_bar_of_the_histogram_filters_the_table(page) -> None:
    shown = page.show(f"{RUN}/step/text/4")
    assert shown.get_by_role("status").get_by_text("128 of 128 completions").count() == 1
    shown.get_by_role("button", name=re.compile("reward 0.95 to 1.00")).click()
    # Of 16 groups 14 have four right answers, and two have eight.
    shown.get_by_text("72 of 128 completions").wait_for()
    shown.get_by_label("Show").select_option("decided")
    shown.get_by_text("16 of 128 completions").wait_for()
    assert shown.locator(".rollouts .mark:has-text('no variance')").count() == 16


def test_a_table_is_sorted_by_its_heads(page) -> None:
    shown = page.show(f"{RUN}/step/text/4")
    shown.get_by_role("button", name="Reward", exact=True).click()
    assert shown.locator(".vt-body .c-reward").first.inner_text() == "1"
    shown.get_by_role("button", name="Reward ↓", exact=True).click()
    assert shown.locator(".vt-body .c-reward").first.inner_text() == "0"
    assert shown.get_by_role("columnheader", name="Reward").get_attribute("aria-sort") == "ascending"


def test_a_script_in_a_rollout_stays_text(page) -> None:
    shown = page.show(f"{RUN}/step/text/4/native/0")
    assert shown.locator(".asked").inner_text() == HOSTILE
    shown = page.show(f"{RUN}/step/text/4")
    assert HOSTILE in shown.locator(".c-text").nth(1).inner_text()
    assert "taken" not in shown.title()
    assert shown.locator("main img[src=x]").count() == 0


def test_tokens_are_coloured_by_what_is_chosen(page) -> None:
    shown = page.show(f"{RUN}/step/text/4/image/1")
    token = shown.locator(".tokens .chunk > span").first
    shown.get_by_role("button", name="Advantage").click()
    shown.wait_for_selector(".tokens .chunk > span.n3")
    shown.get_by_role("button", name="image minus text").click()
    assert shown.locator(".tokens .p1, .tokens .p2, .tokens .p3").count() > 0
    token.hover()
    assert "image minus text" in shown.locator("#tip").inner_text()
    assert (
        shown.locator(".media img").evaluate("async image => { await image.decode(); return image.naturalWidth; }")
        == 16
    )


def test_the_next_prompt_is_a_key_away(page) -> None:
    shown = page.show(f"{RUN}/step/text/4/native/0")
    shown.keyboard.press("ArrowRight")
    shown.wait_for_selector("h1:has-text('Prompt 2 of 8')")
    shown.keyboard.press("k")
    shown.wait_for_selector("h1:has-text('Prompt 1 of 8')")
    shown.get_by_role("link", name="3", exact=True).click()  # the same prompt, a step earlier
    shown.wait_for_url("**/step/text/3/native/0")


def test_the_keyboard_alone_reaches_a_prompt(page) -> None:
    shown = page.show("")
    for _ in range(30):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.textContent") == "demo-1":
            break
    shown.keyboard.press("Enter")
    shown.wait_for_selector(f"main[data-screen='/{RUN}'] .chart")
    for _ in range(40):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.className") == "chart":
            break
    shown.keyboard.press("ArrowLeft")
    assert "step" in shown.locator("#tip").inner_text()
    shown.keyboard.press("Enter")
    shown.wait_for_selector("main h1:has-text(', step')")
    for _ in range(60):
        shown.keyboard.press("Tab")
        if "vt-scroll" in shown.evaluate("document.activeElement.className"):
            break
    shown.keyboard.press("End")
    shown.keyboard.press("Enter")
    shown.wait_for_selector("main h1:has-text('Prompt 8 of 8')")


def test_alarms_say_what_to_do(page) -> None:
    shown = page.show(f"{RUN}/alarms")
    items = shown.locator(".alarm-item")
    assert items.first.inner_text().startswith("ERROR")
    assert "coevo jobs retry image" in items.first.locator(".command").inner_text()
    assert items.first.get_by_role("button", name="again").count() == 0  # these are files alone
    assert "overlaps image@6" in "".join(items.all_inner_texts())
    shown.get_by_label("Level").select_option("error")
    assert [text.split() for text in shown.locator(".log .line").all_text_contents()] == [
        ["worker-all", "ValueError:", "a", "step", "failed"]
    ]


def test_two_runs_lie_over_each_other(page) -> None:
    shown = page.show("")
    for name in ("demo-0", "demo-1"):
        shown.get_by_role("checkbox", name=f"Lay {name} over others").check()
    shown.wait_for_selector("h2:has-text('Laid over each other')")
    assert shown.locator(".chart").count() == 3


def test_a_slider_goes_over_the_phase_ends(page) -> None:
    shown = page.show(RUN)
    cell = shown.locator(".matrix .cell").first
    assert cell.text_content() == "0.950 out of reach"
    shown.get_by_role("slider", name="Phase end").press("ArrowLeft")
    assert cell.text_content() == "0.983"
    shown.get_by_role("button", name="Overlap").click()
    assert cell.text_content() == "0.950"
    shown.get_by_role("button", name="KL, nats").click()
    assert cell.text_content() == "0.0500"


def test_a_scale_between_those_measured_is_told(page) -> None:
    shown = page.show(f"{RUN}/merge")
    slider = shown.get_by_role("slider", name="Scale of the merged delta")
    slider.fill("1.25")
    assert shown.get_by_text("scale 1.25: about 60.0 %").count() == 1
    assert "--scale 1.25" in shown.locator(".command").first.inner_text()


def test_the_merge_is_saved_as_one_adapter_and_its_command_said(page, demo: Path) -> None:
    shown = page.show(f"{RUN}/merge")
    with shown.expect_download() as download:
        shown.get_by_role("button", name="Download adapter_config.json, 2 B").click()
    assert download.value.suggested_filename == "adapter_config.json"
    assert download.value.path().read_bytes() == b"{}"
    command = shown.locator(".command").last.inner_text()
    assert f"--extra merged={demo}/merged-adapter --max-lora-rank 64" in command  # three of 16
    assert shown.get_by_role("button", name="Serve it here").count() == 0  # there is no engine


def test_files_alone_say_why_nobody_else_can_be_asked(page) -> None:
    shown = page.show(f"{RUN}/step/text/4/image/1")
    assert shown.get_by_text("Other adapters can be asked where there is an engine").count() == 1
    assert shown.get_by_label("Score by").count() == 0


def test_a_run_that_goes_on_moves_the_page(page_of, tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.steps(1, 2)
    looking = Looking(tmp_path)
    try:
        shown = page_of(looking.address).show(RUN)
        shown.locator("#live[data-state=live]").wait_for()
        writer.overlap(5, 0.95)
        shown.get_by_role("slider", name="Phase end").wait_for()
        # Killed, and back at the same address: what was told meanwhile is there.
        looking.stop()
        shown.locator("#live[data-state=away]").wait_for()
        writer.overlap(10, 0.95)
        looking = Looking(tmp_path, looking.port)
        shown.get_by_text("end of phase II, step 10").wait_for()
        writer.tell("run", 100, state="finished", name="demo", branches={"text": 2, "image": 2, "video": 2})
        shown.locator("#live[data-state=finished]").wait_for()
    finally:
        looking.stop()

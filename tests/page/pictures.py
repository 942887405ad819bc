"""Pictures of every screen, for the docs: `python -m tests.page.pictures http://127.0.0.1:8000 docs/page`.

The address is that of a service whose newest run is finished, with its engine, so that two models can be asked.
"""

import io
import sys
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page

from tests.page.browser import Watched, launched

MODES = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light")}
TALLEST = 1100
"""Pixels: below that a screen goes on as it began."""
QUESTION = "37+2*4?"


def screens(address: str) -> dict[str, str]:
    run = httpx.get(f"{address}/runs").json()["runs"][0]
    branch = "image" if "image" in run["branches"] else next(iter(run["branches"]))
    path, step = f"run/{run['id']}", run["branches"][branch]["head"]
    rollouts = httpx.get(f"{address}/runs/{run['id']}/rollouts/{branch}/{step}/completions").json()
    teacher = next((part for part in rollouts["parts"] if part != "native"), "native")
    return {
        "runs": "",
        "run": path,
        "metrics": f"{path}/metrics",
        "rollouts": f"{path}/step/{branch}/{step}",
        "prompt": f"{path}/step/{branch}/{step}/native/1",
        "teacher": f"{path}/step/{branch}/{step}/{teacher}/1",
        **(
            {"clip": f"{path}/step/video/{run['branches']['video']['head']}/native/1"}
            if "video" in run["branches"]
            else {}
        ),
        "alarms": f"{path}/alarms",
        "merge": f"{path}/merge",
        "revisions": f"{path}/revisions",
        "chat": f"{path}/chat?a=base&b=text",
    }


def ask(shown: Page) -> None:
    shown.get_by_label("Question").fill(QUESTION)
    shown.get_by_role("button", name="Ask both").click()
    for column in (0, 1):
        shown.get_by_text("tokens in").nth(column).wait_for()


def main() -> None:
    address, out = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with launched() as browser:
        for mode, (width, scheme) in MODES.items():
            viewport = {"width": width, "height": 844}
            context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")  # pyright: ignore[reportArgumentType]
            watched = Watched(context.new_page(), address)
            for name, screen in screens(address).items():
                shown = watched.show(screen)
                if name == "chat" and shown.get_by_label("Question").count():
                    ask(shown)
                if name == "teacher":
                    shown.get_by_label("Score by").select_option("*")  # every other branch
                    shown.get_by_role("button", name=" minus ", pressed=True).wait_for()
                shown.wait_for_timeout(500)  # curves and pictures are drawn when they have a size
                picture = Image.open(io.BytesIO(shown.screenshot(full_page=True)))
                height = min(picture.height, TALLEST)
                picture.crop((0, 0, picture.width, height)).save(out / f"{name}-{mode}.webp", quality=78, method=6)
            context.close()
            print("\n".join(watched.complaints) or f"{mode}: no complaint")


if __name__ == "__main__":
    main()

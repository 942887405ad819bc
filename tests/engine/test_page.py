"""The page over a service with an engine: two models answer side by side, any of them scores what was recorded."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.rollouts import CompletionNotes, GroupNotes, PartHead, RecordHead, pack_group, write_record
from tests.engine.service_process import ServiceProcess
from tests.page.browser import Watched, chromium, launched
from tests.page.test_page import serious

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


RECORD = {"metrics": {}, "run": "demo-1", "branch": "text", "step": 1}


def record(service: ServiceProcess, folder: Path) -> int:
    """Puts a step with one prompt, whose answers the base gave, into the run. Tells how many tokens they have."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "37+red?"}]}]
    picture = folder / "blue.png"
    Image.fromarray(np.full((32, 32, 3), (30, 30, 200), np.uint8)).save(picture)
    with service.client() as client:
        media = client.put("/media", content=picture.read_bytes()).raise_for_status().json()["id"]
        prompt = {"prompt": {"messages": messages}, "images": [media], "seed": 1}
        body = {"prompts": [prompt], "n": 2, "max_tokens": 8}
        (answer,) = client.post("/generate", json=body).raise_for_status().json()["prompts"]
        rows = [
            {"ids": np.array(row["token_ids"], np.int32), "logprobs": np.array(row["logprobs"], np.float32)}
            for row in answer["completions"]
        ]
        notes = [
            CompletionNotes(text="", reward=0.0, why=None, is_cut_off=False, tokens=len(row["ids"]), arrays=list(row))
            for row in rows
        ]
        group = GroupNotes(
            prompt_id="p", question="37+red?", answer="", media=[media], messages=messages, completions=notes
        )
        head = RecordHead(**RECORD, parts=[PartHead(name="native", capability=None, num_groups=1)])
        arrays = pack_group(group, np.array(answer["prompt_token_ids"]), rows)
        write_record(folder / "record", head, lambda *_: arrays)
        put = client.put("/runs/demo-1/rollouts/text/1", content=(folder / "record").read_bytes())
        assert put.status_code == 200, put.text
    return sum(len(row["ids"]) for row in rows)


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")
def test_any_adapter_of_the_service_colours_the_tokens(service: ServiceProcess, tmp_path: Path) -> None:
    tokens = record(service, tmp_path)
    with launched() as browser:
        watched = Watched(browser.new_page(), service.url)
        shown = watched.show("run/demo-1/step/text/1/native/0")
        for name in ("merged", "base"):
            shown.get_by_label("Score by").select_option(name)
            shown.get_by_role("button", name=f"{name} minus text", pressed=True).wait_for()
        spans = shown.locator(".tokens .chunk > span").all()
        assert len(spans) == tokens
        differences: dict[str, list[float]] = {"merged": [], "base": []}
        for span in spans:
            span.dispatch_event("mousemove")  # a token may be a blank, which no pointer hits
            tip = shown.locator("#tip").inner_text().replace("\N{MINUS SIGN}", "-")
            for name, values in differences.items():
                values.append(float(re.findall(rf"{name} minus text\s*([+-]?[\d.]+)", tip)[0]))
        # The base gave these answers: what it finds of them is what was recorded, but for rounding.
        assert max(map(abs, differences["base"])) <= 0.001
        assert max(map(abs, differences["merged"])) > 0.001
        assert shown.locator(".tokens span[class^='t ']").count() == 0
        assert serious(shown) == []
        assert watched.complaints == []


@pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium")
def test_a_merge_is_served_from_its_runs_folder(service: ServiceProcess, adapter_folders: dict[str, Path]) -> None:
    out = service.store.parent
    with service.client() as client:
        path = "/runs/demo-1/merged-adapter/serve"
        early = client.post(path, json={"name": "stacked"})
        assert (early.status_code, early.json()["detail"]) == (
            404,
            "demo-1 has no merge yet; coevo run makes it after the last step",
        )
        shutil.copytree(adapter_folders["plain"], out / "merged-adapter")
        (out / "recipe.json").write_text("{}")
        taken = client.post(path, json={"name": "merged"})
        assert (taken.status_code, taken.json()["type"]) == (409, "branch-exists"), taken.text
        digest = client.post(path, json={"name": "stacked"}).raise_for_status().json()["digest"]
        assert client.post(path, json={"name": "stacked"}).json() == {"name": "stacked", "digest": digest}
        body = {"sequences": [{"prompt": [1, 2], "completion": [3, 4]}]}
        scores = client.post("/logprobs?adapter=stacked&adapter=base", json=body).raise_for_status().json()["adapters"]
        assert scores[0]["digest"] == digest
        assert scores[0]["sequences"][0]["logprobs"] != scores[1]["sequences"][0]["logprobs"]

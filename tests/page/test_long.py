"""A long run and long rollouts: few nodes, few bytes, a service that stays as it is; how quick it is, is printed."""

from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from tests.page.conftest import Looking
from tests.page.folder import RunWriter

pytestmark = pytest.mark.e2e
STEPS, BRANCHES, TOKENS = 5000, 16, 16384
RUN = "run/demo-1"
MEBI = 2**20
PAINTED = "performance.getEntriesByType('paint').find(entry => entry.name === 'first-contentful-paint').startTime"
# From an input to the second frame after it, which shows what it changed.
SHOWN_AFTER = """async ([selector, kind]) => {
    const node = document.querySelector(selector), began = performance.now();
    if (kind === 'scroll') node.scrollTop += 2000;
    else { node.value = 'answer 5'; node.dispatchEvent(new Event('input')); }
    await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    return performance.now() - began;
}"""


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Generator[Looking]:
    out: Path = tmp_path_factory.mktemp("long")
    writer = RunWriter(out, branches=[f"branch-{number}" for number in range(BRANCHES)], last=STEPS)
    for first in range(1, STEPS + 1, 500):
        writer.steps(first, first + 499)
    writer.rollouts("branch-0", 4, groups=2, tokens=TOKENS)
    writer.rollouts("branch-0", 5, groups=256, size=16)
    (out / "recipe.json").write_text('{"base": {"name": "miniature"}}')  # whose tokenizer tells the tokens
    looking = Looking(out)
    yield looking
    looking.stop()


def test_a_long_run_comes_in_slices(page_of, looking: Looking) -> None:
    watched = page_of(looking.address)
    sizes: list[int] = []
    watched.page.on("requestfinished", lambda request: sizes.append(request.sizes()["responseBodySize"]))
    shown = watched.show(RUN)
    shown.wait_for_selector(".chart canvas")
    painted, whole = shown.evaluate(PAINTED), shown.evaluate("performance.now()")
    process = psutil.Process(looking.pid)
    before = process.memory_info().rss
    for screen in [f"{RUN}/metrics", RUN] * 5:
        watched.show(screen)
    grown = process.memory_info().rss - before
    print(f"\n{STEPS} steps of {BRANCHES} branches: first paint {painted:.0f} ms, all curves {whole:.0f} ms,")
    print(f"  largest answer {max(sizes) / MEBI:.2f} MiB, service {before / MEBI:.0f} MiB, {grown / MEBI:+.1f} later")
    assert max(sizes) < 4 * MEBI
    assert grown < 32 * MEBI


def test_a_table_of_thousands_has_few_nodes(page_of, looking: Looking) -> None:
    shown = page_of(looking.address).show(f"{RUN}/step/branch-0/5")
    shown.get_by_text("8,192 of 8,192 completions").wait_for()
    scrolled = sorted(shown.evaluate(SHOWN_AFTER, [".vt-scroll", "scroll"]) for _ in range(9))[4]
    filtered = shown.evaluate(SHOWN_AFTER, ["input[type=search]", "filter"])
    print(f"\n8,192 completions: a scroll is shown after {scrolled:.0f} ms, a filter after {filtered:.0f} ms")
    assert shown.locator(".vt-body .vt-row").count() < 80
    shown.get_by_text("512 of 8,192 completions").wait_for()


def test_long_completions_become_nodes_as_they_come_near(page_of, looking: Looking) -> None:
    shown = page_of(looking.address).show(f"{RUN}/step/branch-0/4/branch-1/1")
    shown.wait_for_selector(".tokens .chunk > span", state="attached")  # it may be a blank
    whole = shown.evaluate("performance.now()")
    scrolled = sorted(shown.evaluate(SHOWN_AFTER, [".tokens", "scroll"]) for _ in range(9))[4]
    print(f"\n8 completions of {TOKENS} tokens: there after {whole:.0f} ms, a scroll is shown after {scrolled:.0f} ms")
    nodes = shown.locator(".tokens .chunk > span").count()
    assert 0 < nodes < 8 * TOKENS / 4
    text = shown.locator(".tokens").first.text_content()
    assert text is not None
    assert len(text) >= TOKENS  # all of it is there to be searched

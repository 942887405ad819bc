"""The site of the docs: built as `make docs` does it, with links checked, and whole without a network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

FILES = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md")
LOADED = re.compile(r'<(?:script|img|source)[^>]*?\ssrc="?([^"\s>]+)|<link\b([^>]*)>')
HREF = re.compile(r'href="?([^"\s>]+)')


def build(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, root / "docs/site.py"], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that nothing is written beside the sources; links into them are followed there."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("adapters", "bench", "docs", "recipes", "service", "tests", "trainer"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in FILES:
        shutil.copy(ROOT / name, root)
    return root


@pytest.fixture(scope="module")
def site(tree: Path) -> Path:
    done = build(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    return tree / "build/site"


def loaded(page: Path) -> set[str]:
    """What a browser fetches by itself to show a page."""
    names: set[str] = set()
    for source, link in LOADED.findall(page.read_text()):
        href = HREF.search(link)
        if source or (href and re.search(r"stylesheet|icon|preload|preconnect", link)):
            names.add(source or href[1])  # type: ignore[index]
    return {name for name in names if not name.startswith("data:")}


def test_every_page_of_the_docs_is_there_and_named_by_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    pages = [path.stem for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert len(pages) > 10
    for stem in (*pages, "CHANGELOG", "CONTRIBUTING"):
        assert (site / f"{stem}.html").is_file()
        assert re.search(rf'href="?(\./)?{stem}\.html', home), stem
    assert "What do I do with my own?" in home


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    fetched = {page: loaded(page) for page in pages}
    assert any(name.endswith(".png") for names in fetched.values() for name in names)
    for page, names in fetched.items():
        assert [name for name in names if "//" in name] == [], page
        for name in names:
            base = site if name.startswith("/") else page.parent
            assert (base / name.lstrip("/").partition("?")[0]).resolve().is_file(), f"{page}: {name}"
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\(['\"]?https?:", styles) == []


def test_a_link_into_the_sources_leads_to_a_page_that_shows_them(site: Path) -> None:
    assert "train_step" in (site / "sources/trainer/loop.py.html").read_text()
    assert re.search(r'href="?[^" >]*sources/trainer/loop\.py\.html', (site / "method.html").read_text())


def test_a_link_that_leads_nowhere_fails_the_build(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path, ignore=shutil.ignore_patterns("build"), dirs_exist_ok=True)
    with (tmp_path / "docs/README.md").open("a") as page:
        page.write("\n[a page](gone.md)\n")
    done = build(tmp_path)
    assert done.returncode != 0
    said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)  # colours
    assert "page does not exist" in said
    assert "[a page](gone.md)" in said
    assert said.count("Warning") == 1

"""What README and docs name is there: links, headings, files, modules, and the function that the README shows."""

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IMAGE_FILES = [ROOT / "Dockerfile", *sorted(ROOT.glob("compose*.yaml")), *sorted((ROOT / "containers").iterdir())]
FOLDERS = ("adapters", "bench", "clients", "containers", "deploy", "docs", "recipes", "service", "tests", "trainer")
SOURCES = ("adapters", "bench", "clients", "service", "trainer", "tests")

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./-]*")
MODULE = re.compile(r"(?:adapters|bench|clients|service|trainer)(?:\.[A-Za-z_]\w*)+")
TREE = re.compile(r"^```text\n(trainer/ .*?)^```$", re.MULTILINE | re.DOTALL)

a_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_module_or_member(name: str) -> bool:
    """`trainer.data.prompts`, or `trainer.data.prompts.Prompt`."""
    path, members = ROOT, name.split(".")
    while members and (path / members[0]).is_dir():
        path = path / members.pop(0)
    if not members:
        return True
    module = path / f"{members[0]}.py"
    if module.exists():
        members.pop(0)
    source = module if module.exists() else path / "__init__.py"
    bound = re.compile(rf"^(?:async )?(?:def |class )?{members[0]}\b", re.MULTILINE) if members else None
    return len(members) <= 1 and (bound is None or bound.search(source.read_text()) is not None)


@a_page
def test_links_within_the_tree_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [*PAGES, *IMAGE_FILES], ids=lambda page: page.name)
def test_named_files_and_folders_exist(page: Path) -> None:
    names = [name.rstrip(".-") for name in PATH.findall(LINK.sub("]", page.read_text()))]
    assert [name for name in names if not (ROOT / name).exists()] == []


@a_page
def test_named_modules_and_bare_source_files_exist(page: Path) -> None:
    text = page.read_text()
    words = [*INLINE.findall(FENCE.sub("", text)), *re.findall(r"python -m ([\w.]+)", text)]
    modules = [word for word in words if MODULE.fullmatch(word)]
    assert [name for name in modules if not is_module_or_member(name)] == []
    files = {path.name for folder in SOURCES for path in (ROOT / folder).rglob("*.py")}
    assert [word for word in words if re.fullmatch(r"\w+\.py", word) and word not in files] == []


def test_readme_is_short_and_its_tables_narrow() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if line.startswith("|") and len(line) > 100] == []


def test_readme_shows_the_train_step_that_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block.startswith("async def train_step(")
    assert f"\n{block}\n\n" in (ROOT / "trainer/loop.py").read_text()


def test_readme_tree_names_every_entry_of_the_trainer() -> None:
    (tree,) = TREE.findall(README.read_text())
    shown = [line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")]
    entries = {path.name for path in (ROOT / "trainer").iterdir()} - {"__init__.py", "__pycache__"}
    assert sorted(shown) == sorted(entries)


def test_index_of_docs_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name not in index] == ["README.md"]


def test_citation_is_of_this_version_license_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    (paper,) = citation["references"]
    assert paper["url"] in README.read_text()


@pytest.mark.parametrize("name", ["method.svg", "processes.svg"])
def test_figures_are_drawn_for_light_and_dark(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert ElementTree.fromstring(text).get("viewBox")
    assert "prefers-color-scheme: dark" in text

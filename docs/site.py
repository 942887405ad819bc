"""The pages of README and docs as a site that needs no network: `make docs`, then open build/site/index.html.

Pages are copied, so that links which GitHub follows out of `docs/` lead somewhere here as well: a source file becomes a
page that shows it, a folder the names in it. Zensical makes the site, and refuses links that lead nowhere.
"""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES, SITE, CONFIG = ROOT / "build/pages", ROOT / "build/site", ROOT / "build/zensical.toml"
CHAPTERS = {
    "Start": ["README.md", "install.md", "demo.md", "commands.md"],
    "What do I do with my own?": ["your-data.md", "recipe.md", "merge.md", "data.md"],
    "How does it work?": ["method.md", "update.md", "service.md", "evaluation.md"],
    "How do I run it for long?": ["running.md", "page.md", "operations.md", "containers.md", "gpu.md"],
    "Does it work?": ["results.md", "results-primary.md", "results-tables.md", "results-real.md", "miniature.md"],
    "What changed?": ["CHANGELOG.md", "CONTRIBUTING.md"],
}
"""The navigation, by what a reader asks. A page that is in none of them stands under `More`."""
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Pages that lie beside `docs/` and are pages of the site."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
_SHOWN = {".py": "python", ".toml": "toml", ".json": "json", ".lua": "lua"}
_LONG = 200_000
"""Characters above which a file is named and not shown: a page of them opens slowly and nobody reads it."""
_THEME = """
[project]
site_name = "coevo"
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
nav = [{nav}]

[project.theme]
font = false  # else it comes from another host
features = ["navigation.sections", "navigation.top", "content.code.copy"]

[project.markdown_extensions.tables]
[project.markdown_extensions.attr_list]
[project.markdown_extensions."pymdownx.superfences"]
[project.markdown_extensions."pymdownx.highlight"]
[project.markdown_extensions.toc]
permalink = true
slugify = {{ object = "pymdownx.slugs.slugify", kwds = {{ case = "lower" }} }}  # as GitHub names headings

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
"""


def main() -> int:
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in BESIDE:
        shutil.copy(ROOT / name, PAGES)
    # Links last: pages of sources are added by what is found to link to them, and have no links themselves.
    for page in sorted(PAGES.glob("*.md")):
        folder = ROOT if page.name in BESIDE else ROOT / "docs"
        page.write_text(_LINK.sub(partial(_target, folder), page.read_text()))
    CONFIG.write_text(_THEME.format(nav=", ".join(_navigation())))
    command = [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean", "--config-file", CONFIG]
    return subprocess.run(command, check=False).returncode


def _navigation() -> list[str]:
    named = {name for names in CHAPTERS.values() for name in names}
    rest = sorted(page.name for page in PAGES.glob("*.md") if page.name not in named)
    chapters = CHAPTERS | ({"More": rest} if rest else {})
    return [f'{{ "{title}" = [{", ".join(f"{name!r}" for name in names)}] }}' for title, names in chapters.items()]


def _target(folder: Path, link: re.Match[str]) -> str:
    """Where a link of a page in that folder leads on the site; what the site hasn't yet is made a page of it."""
    path = (folder / link[1]).resolve()
    name = path.relative_to(ROOT).as_posix()
    if path.parent == ROOT / "docs" or name in BESIDE:
        return path.name
    if name == "docs" or name == "README.md":
        return "README.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    # A page of its name: two links to a file lead to one.
    page = PAGES / "sources" / f"{name}.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"# {name}\n\n{_shown(path)}\n")
    return page.relative_to(PAGES).as_posix()


def _shown(path: Path) -> str:
    if path.is_dir():
        return "\n".join(f"* `{file.name}`" for file in sorted(path.iterdir()) if file.name != "__pycache__")
    text = path.read_text()
    if len(text) > _LONG:
        return f"{len(text):,} characters; see the file."
    # Five, because Markdown in a docstring may have a fence of three.
    return f"`````{_SHOWN.get(path.suffix, '')}\n{text}`````"


if __name__ == "__main__":
    sys.exit(main())

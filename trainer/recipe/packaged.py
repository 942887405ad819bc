"""Recipes that come with coevo, by name: `miniature`, `paper-copd3`, `miniature/compare`.

They lie in `recipes/`, beside the packages: in a checkout and, because the wheel carries the folder, where coevo is
installed.
"""

import difflib
import re
from collections.abc import Collection
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "recipes"
PARTS = "parts/"
"""How names begin of what is no whole recipe: `extends` takes it, `coevo run` could not."""

_SUFFIXES = (".toml", ".json")


def packaged_recipes() -> dict[str, Path]:
    """The files of all of them, and of the parts, by name."""
    # Short names first: variants come after what they are of.
    files = sorted(FOLDER.rglob("*.toml"), key=lambda file: (len(file.relative_to(FOLDER).parts), file))
    return {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in files}


def locate_recipe(name: Path, folder: Path, besides: Collection[Path] = ()) -> Path:
    """The file of a recipe: the path from the folder, the same with `.toml`, or what comes with coevo under that name.

    `besides`: resolved files that are not meant, so that one's own `miniature.toml` can extend `miniature`.
    """
    path = folder / name
    if path.suffix in _SUFFIXES or path.is_file():
        return path
    beside = path.with_name(f"{path.name}.toml")
    if beside.is_file() and beside.resolve() not in besides:
        return beside
    return packaged_recipes().get(name.as_posix(), path)


def nearest_recipe(path: Path) -> str | None:
    """The name that may have been meant by a path where nothing lies: its last two words, or the last."""
    words = ("/".join(path.with_suffix("").parts[-2:]), path.stem)
    near = [name for word in words for name in difflib.get_close_matches(word, packaged_recipes(), n=1, cutoff=0.7)]
    return near[0] if near else None


def purpose(file: Path) -> str:
    """The first sentence of a recipe's file, which stands in the comment at its top."""
    comment = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))
    assert comment is not None  # it matches nothing, too
    words = " ".join(line.lstrip("#").strip() for line in comment[0].splitlines())
    sentence = re.match(r".+?\.(?=\s|$)", words)
    return sentence[0] if sentence else words

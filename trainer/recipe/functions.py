"""Where the module of a reward of one's own lies: beside the recipe that names it, as long as it is there.

The folder is looked up when a recipe is read, because only then its file is known. From there it travels with the
recipe, into `recipe.json` and through the queue, so that every process imports the same module. It names a place on
this machine, nothing that is computed: digests leave it out.

Left out: the import itself, which runs a user's code and happens in a child (`trainer.rewards`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from trainer.recipe.problems import Tree

FOLDERS: Any = {
    "capabilities": {"__all__": {"reward": {"folder"}}},
    "evaluation": {"sets": {"__all__": {"reward": {"folder"}}}},
}
"""The folders of a recipe, as pydantic names what a dump leaves out."""


def place_functions(tree: Tree, beside: Path) -> None:
    """Writes into each reward of a recipe's file the folder that its function's module lies in."""
    for reward in _rewards(tree):
        kind, folder = reward.get("kind"), reward.get("folder")
        if isinstance(folder, str):
            reward["folder"] = str((beside / folder).resolve())  # an absolute one stays as it is
        elif isinstance(kind, str) and ":" in kind:
            module = kind.partition(":")[0].partition(".")[0]
            # Elsewhere it may be installed, or be on PYTHONPATH: then Python finds it, and nothing is to travel.
            if (beside / f"{module}.py").is_file() or (beside / module).is_dir():
                reward["folder"] = str(beside.resolve())


def _rewards(tree: Tree) -> Iterator[Tree]:
    # Whatever is no table is a mistake, which the whole recipe's check names.
    for tables in (tree.get("capabilities"), _table(tree.get("evaluation")).get("sets")):
        for table in _table(tables).values():
            reward = _table(table).get("reward")
            if isinstance(reward, dict):
                yield cast(Tree, reward)


def _table(value: object) -> Tree:
    return cast(Tree, value) if isinstance(value, dict) else {}

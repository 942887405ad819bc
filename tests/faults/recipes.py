"""Small recipes of the miniature, with branches NAME-text and so on, so that many runs fit into one store."""

import json
from pathlib import Path

from trainer.recipe import Recipe
from trainer.recipe.file import load

MINIATURE = Path("recipes/miniature.toml")
CAPABILITIES = ("text", "image", "video")
SMALL = (
    "rollout.prompts=2",
    "rollout.group_size=4",
    "rollout.max_completion_tokens=32",
    "method.cycles=2",
    "method.rlvr_steps=2",
    "method.opd_steps=1",
    "evaluation.overlap_prompts=0",
    *(f"capabilities.{one}.data.size=64" for one in CAPABILITIES),  # they are drawn at every start of a worker
)
ALONE = ("method.kind=rlvr", "method.topology=pairwise", "method.hub=null")


def small(*changes: str) -> Recipe:
    return load(MINIATURE, [*SMALL, *changes])


def written(
    folder: Path, name: str, *changes: str, capabilities: tuple[str, ...] = CAPABILITIES, init: str = "base"
) -> Path:
    """A recipe file of that name; with one capability it is plain RLVR."""
    tree = small(*changes, *(ALONE if len(capabilities) == 1 else ())).model_dump(mode="json")
    tree["name"] = name
    tree["capabilities"] = {one: tree["capabilities"][one] for one in capabilities}
    tree["branches"] = {f"{name}-{one}": {"capabilities": [one], "init": init} for one in capabilities}
    if tree["method"]["hub"]:
        tree["method"]["hub"] = f"{name}-text"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return path


def renamed(folder: Path, recipe: Recipe, name: str) -> Path:
    """The same with branches NAME-text and so on."""
    tree = recipe.model_dump(mode="json")
    method = tree["method"]

    def own(branch: str | None) -> str | None:
        return None if branch is None else f"{name}-{branch}"

    tree["name"] = name
    tree["branches"] = {own(branch): one for branch, one in tree["branches"].items()}
    tree["merge"]["weights"] = {own(branch): one for branch, one in tree["merge"]["weights"].items()}
    method["hub"], method["student"] = own(method["hub"]), own(method["student"])
    method["edges"] = [
        edge | {"student": own(edge["student"]), "teacher": own(edge["teacher"])} for edge in method["edges"]
    ]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return path

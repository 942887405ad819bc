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
    *(f"capabilities.{name}.data.size=64" for name in CAPABILITIES),  # they are drawn at every start of a worker
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
    tree["capabilities"] = {label: tree["capabilities"][label] for label in capabilities}
    tree["branches"] = {f"{name}-{label}": {"capabilities": [label], "init": init} for label in capabilities}
    if tree["method"]["hub"]:
        tree["method"]["hub"] = f"{name}-text"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return path


def renamed(folder: Path, recipe: Recipe, name: str) -> Path:
    """The same with branches NAME-text and so on."""
    tree = recipe.model_dump(mode="json")
    method = tree["method"]

    def renamed_branch(branch: str | None) -> str | None:
        return None if branch is None else f"{name}-{branch}"

    tree["name"] = name
    tree["branches"] = {renamed_branch(branch): settings for branch, settings in tree["branches"].items()}
    tree["merge"]["weights"] = {renamed_branch(branch): weight for branch, weight in tree["merge"]["weights"].items()}
    method["hub"], method["student"] = renamed_branch(method["hub"]), renamed_branch(method["student"])
    method["edges"] = [
        edge | {"student": renamed_branch(edge["student"]), "teacher": renamed_branch(edge["teacher"])}
        for edge in method["edges"]
    ]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(tree))
    return path

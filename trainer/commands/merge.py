"""`coevo merge RUN` or `coevo merge ADAPTER...`: adapters of one base become one checkpoint, one adapter, or both.

Of a run, its recipe says the base, the method and the weights, where the command does not. `--scale auto` takes the
best of several scales on the run's held-out questions; `--push` sends the checkpoint to a hub.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from adapters.base import locate
from adapters.errors import UserError
from adapters.merge_record import METHODS
from adapters.names import shown
from trainer.recipe import Recipe
from trainer.recipe.file import load

_SCORES = TypeAdapter(dict[str, dict[str, float]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters", nargs="+", metavar="ADAPTER", help="[NAME=]BRANCH@REVISION, [NAME=]FOLDER, or a run"
    )
    parser.add_argument("--base", metavar="BASE", help="miniature, a folder, or a hub name; a run's own by default")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where BRANCH@REVISION are; a service may use it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the checkpoint, a new folder")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="the same as one adapter, a new folder")
    parser.add_argument("--method", choices=METHODS, help="mean by default, or as a run's recipe says")
    parser.add_argument("--weights", default="", metavar="NAME=W,...", help="of the mean; equal by default")
    parser.add_argument(
        "--scale", default="1", metavar="X", help="times the merged delta; auto takes the best of several"
    )
    parser.add_argument("--rank", type=int, metavar="N", help="of svd; the largest adapter's by default")
    parser.add_argument("--density", type=float, default=0.2, metavar="X", help="of ties: the share of entries kept")
    parser.add_argument("--scores", type=Path, metavar="FILE", help="JSON for the card: {model: {capability: score}}")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send the checkpoint to this repository of the hub")


def run(arguments: argparse.Namespace) -> int:
    if arguments.out is None and arguments.adapter is None:
        raise UserError("nothing to make; name a new folder with --out, --adapter or both")
    if arguments.out == arguments.adapter:
        raise UserError(f"--out and --adapter: {arguments.out} cannot be both; name two folders")
    out: Path | None = arguments.out
    if arguments.push:
        if out is None:
            raise UserError(f"--push {arguments.push}: sends a checkpoint; name its folder with --out")
        check_hub(arguments.push)
    scores = card_scores(arguments.scores) if arguments.scores else {}
    weights, scale = parsed_weights(arguments.weights), parsed_scale(arguments.scale)
    recipe = recipe_of(arguments.adapters)
    # The command's own words come before the recipe's.
    name = arguments.base or (recipe.base.name if recipe else None)
    if name is None:
        raise UserError("--base: which one are they of? give miniature, a folder or a hub name")
    folder = locate(name)
    # Not at the top: they import torch, and what is wrong above is told at once.
    from adapters.merge import check_new, make_merge_plan
    from adapters.merge_inputs import open_base
    from trainer.local.merging import branches_of, chosen_scale, make

    for target in filter(None, (arguments.out, arguments.adapter)):
        check_new(target)  # before a base of many GB is read
    # A card names the base: a folder's own name says more there than a path of this machine.
    base = open_base(folder, folder.name if Path(name).is_dir() else name)
    method = arguments.method or (recipe.merge.method if recipe and recipe.merge.method != "none" else "mean")
    branches = branches_of(arguments.adapters, arguments.store, base)
    merge_plan = make_merge_plan(
        branches,
        weights or (recipe.merge.weights if recipe else {}),
        method=method,
        scale=1.0 if scale is None else scale,
        rank=arguments.rank,
        density=arguments.density,
    )
    if scale is None:
        scale = chosen_scale(recipe, Path(arguments.adapters[0]), base, merge_plan)
        merge_plan = replace(merge_plan, scale=scale)
    make(base, merge_plan, out, arguments.adapter, scores)
    if arguments.push and out is not None:
        print(f"pushed: {push(out, arguments.push)}")
    return 0


def recipe_of(adapters: Sequence[str]) -> Recipe | None:
    """The recipe of a run's folder; None: what is named is no run."""
    path = Path(adapters[0]) / "recipe.json"
    return load(path) if len(adapters) == 1 and path.is_file() else None


def check_hub(name: str) -> None:
    """Refuses a push that cannot work, as far as it is known here: before minutes of work."""
    # Here, as in `push`: a plain merge needs no hub's client.
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"--push {shown(name)}: no name of a repository; write OWNER/NAME") from None
    if is_offline_mode():
        raise UserError(f"--push {name}: HF_HUB_OFFLINE keeps it from the hub; unset that, or merge without --push")
    if get_token() is None:
        raise UserError(f"--push {name}: nobody is logged in to the hub; use `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str) -> str:
    """Sends a folder to a private repository of the hub, made where there is none. The repository's address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Merged with coevo")
    except Exception as error:  # of the hub, of what carries its requests, or of what carries large files
        message = (error.server_message if isinstance(error, HfHubHTTPError) else None) or str(error)
        reason = next(iter(message.strip().splitlines()), type(error).__name__)
        later = f"{folder} is whole; to send it later: hf upload {name} {folder} . --private"
        raise UserError(f"--push {name}: the hub does not take it ({reason}); {later}") from None
    return str(repository)


def parsed_weights(text: str) -> dict[str, float]:
    """The weights in `text=2,image=1`, by name."""
    weights: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        if name in weights:
            raise UserError(f"--weights: {shown(name)} has two; give one")
        weights[name] = _number(number, f"--weights: {shown(part)}", "text=2,image=1")
    return weights


def parsed_scale(text: str) -> float | None:
    """The number after `--scale`; None: it is to be chosen."""
    return None if text == "auto" else _number(text, f"--scale {shown(text)}", "1.0, or auto")


def card_scores(path: Path) -> dict[str, dict[str, float]]:
    try:
        return _SCORES.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise UserError(f'{path}: no scores; write {{"merged": {{"text": 0.81}}}}') from None


def _number(text: str, where: str, example: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where} has no number; write {example}") from None

"""Where a base lies. Left out: loading it, and its digest in a store."""

from importlib.metadata import entry_points
from pathlib import Path

from adapters.errors import UserError

BASES = "coevo.bases"
"""The entry points of installed packages that bring a base: its name, and the variable with its folder. One that is
built on the machine may not be there yet."""


def locate(name: str) -> Path:
    """The folder of a base: `miniature`, `real`, a folder with a `config.json`, or a hub name that was downloaded."""
    for base in entry_points(group=BASES, name=name):
        if not (built := base.load()).exists():
            raise UserError(f"{name}: not built yet; `coevo base build {name}` makes it")
        return built
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise UserError(f"{name}: no config.json in this folder; name the folder of a Hugging Face checkpoint")

    # Here, as most callers name a folder, and the hub's client takes a while to import.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # Never a download: a command must not fetch many GB that nobody asked for.
        return Path(snapshot_download(name, local_files_only=True))
    except HFValidationError:
        raise UserError(f"{name}: no such folder, and no hub name either (OWNER/NAME)") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{name}: neither a folder nor downloaded yet; `hf download {name}` fetches it") from None

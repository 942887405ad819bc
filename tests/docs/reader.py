"""A reader who types a page's blocks, from top to bottom, in a folder as a checkout has it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

import httpx
import yaml

from tests.docs.blocks import ROOT, Block
from tests.faults import namespaces
from trainer.recipe.file import load

COPIED = ("recipes", "examples", "bench/results", "Makefile", "pyproject.toml", "constraints.txt")
PATIENCE_S = 3000.0
"""For a block: a demo is ten minutes on two quiet cores."""
GOODBYE_S = 60.0
"""For what a block has left in the background, which finishes the update under way."""


class Reader:
    """Variables that a block exports are there in the next, and what it starts in the background goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, folder / name)
        # For `make`, which finds its set-up done and newer than what it was made of.
        (folder / ".venv").mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (folder / ".venv" / name).symlink_to(ROOT / ".venv" / name)
        (folder / ".venv/.ready").touch()
        self._state = folder / ".state"
        self._state.mkdir()
        (self._state / "variables").touch()
        self._groups: list[int] = []
        self._printed = ""

    def follow(self, block: Block) -> None:
        """Fails with the block's page and line, and with what it printed."""
        kind, _, rest = block.marker.partition(" ")
        if block.marker == "part of a recipe":
            self._read(block, "part.toml", f'extends = "recipes/miniature.toml"\n{block.text}')
        elif kind == "part":
            source = rest.removeprefix("of ")
            assert block.text in (ROOT / source).read_text(), f"{block}: not in {source}"
        elif kind == "output":
            self._compare(block, block.text)
        elif block.language == "sh":
            self._type(block, block.text)
        elif block.language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                self._type(block, command)
                self._compare(block, output)
        else:
            self._read(block, rest if kind == "file" else f"block.{block.language}", block.text)

    def start_service(self, block: Block) -> None:
        """Leaves its terminal open, and waits until it serves."""
        self._type(block, f"{block.text.strip()} &")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get("http://127.0.0.1:8000/readyz").status_code == 200:
                    return
            assert time.monotonic() < deadline, (self._state / "said").read_text()
            time.sleep(0.2)

    def _type(self, block: Block, text: str) -> None:
        variables, said, warned = (self._state / name for name in ("variables", "said", "warned"))
        (self._state / "script").write_text(f". {variables}\n{text}\nexport -p > {variables}\n")
        # Files, for pipes would be held open by what goes on in the background.
        with said.open("wb") as output, warned.open("wb") as errors:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", self._state / "script"],
                cwd=self.folder,
                env=os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "COLUMNS": "80"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self._groups.append(process.pid)
        status = process.wait(PATIENCE_S)
        self._printed = said.read_text()
        assert status == 0, f"{block}: ended with {status}\n{text}\n{self._printed[-1500:]}{warned.read_text()[-1500:]}"

    def _compare(self, block: Block, output: str) -> None:
        is_same = OutputChecker().check_output(output, self._printed, ELLIPSIS | NORMALIZE_WHITESPACE)
        assert is_same, f"{block}: printed\n{self._printed[-3000:]}"

    def _read(self, block: Block, name: str, text: str) -> None:
        """Writes a file and reads it as what it is. The sources' file of that name says the same."""
        path = self.folder / name
        assert not (ROOT / name).exists() or text == (ROOT / name).read_text(), f"{block}: not what {name} says"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        try:
            match block.language:
                case "python":
                    self._type(block, f"python {name}")
                case "toml":
                    load(path)
                case "yaml":
                    yaml.safe_load(text)
                case "json":
                    json.loads(text)
        except (ValueError, yaml.YAMLError) as error:
            raise AssertionError(f"{block}: {error}") from None

    def close(self) -> None:
        """Ends what goes on in the background, as Ctrl-C in its terminal would."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in self._groups:
                _signalled(group, number)
            deadline = time.monotonic() + GOODBYE_S
            while any(_signalled(group, 0) for group in self._groups) and time.monotonic() < deadline:
                time.sleep(0.1)


def _signalled(group: int, number: int) -> bool:
    """Whether any process of the group is there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def ports_as_printed() -> Iterator[None]:
    """A network where nobody has the ports that pages name. Where there can be none they must be free."""
    if namespaces.missing() is not None:
        yield
        return
    with namespaces.loopback() as network, namespaces.inside(network):
        yield

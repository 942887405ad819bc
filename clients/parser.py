"""A parser of command lines that answers a mistake with one line, and imports a command's module when it is typed.

argparse answers a mistake with the whole usage, twenty lines for some commands, and suggests nothing.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast

_BAD_CHOICE = re.compile(r"argument (.+): invalid choice: (.+) \(choose from (.+)\)")
"""argparse's own words for a value that is none of the choices; it keeps them in no other form."""


class Command(Protocol):
    """What the module of a command offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def command_of(module: str) -> Command:
    return cast(Command, importlib.import_module(module))


class Parser(argparse.ArgumentParser):
    """The parser of a command. Parsers that are added below it are of this class, too."""

    def __init__(self, *args: Any, module: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module
        self._words: list[str] = []

    def load(self) -> None:
        """Adds the arguments of the command's module, once."""
        if self._module is not None:
            command_of(self._module).add_arguments(self)
            self._module = None

    def completion(self, shell: str) -> str:
        """The script that completes commands, flags and files in a shell."""
        import shtab  # for this alone

        self._load_all(shtab.FILE, shtab.DIRECTORY)
        return shtab.complete(self, shell)

    def _load_all(self, file: object, folder: object) -> None:
        self.load()
        for action in self._actions:
            if action.type is Path:
                cast(Any, action).complete = folder if action.metavar == "DIR" else file  # shtab looks for it there
            below = cast(dict[str, object], action.choices) if isinstance(action.choices, dict) else {}
            for parser in below.values():
                if isinstance(parser, Parser):  # and no choice that a bench looks up in a dict
                    parser._load_all(file, folder)

    def parse_known_args(  # type: ignore[override]  # typeshed has overloads by the namespace's type
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, but what is not known is refused here: argparse would leave it to the outermost parser,
        which doesn't know the flags of a command and so can suggest none."""
        self.load()
        self._words = list(sys.argv[1:] if args is None else args)
        namespace, unknown = super().parse_known_args(self._words, namespace)
        if unknown:
            # The flag and not what stands before it: its value may have been taken for an argument.
            self.error(self._unknown(next(filter(_is_flag, unknown), unknown[0])))
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        if match := _BAD_CHOICE.fullmatch(message):
            where, value, choices = match[1], match[2].strip("'"), re.findall(r"[\w-]+", match[3])
            label = f"{where} {value}: no such value" if _is_flag(where) else f"{value}: no such {where.lower()}"
            message = f"{label}; {_nearest(value, choices) or 'there are ' + ', '.join(choices)}"
        elif message.startswith("the following arguments are required"):
            # A flag that is required and mistyped is told as the second, not as one that is missing.
            wrong = next((word for word in self._words if _is_flag(word) and not self._knows(word)), None)
            message = f"{message.rpartition(': ')[2]}: missing" if wrong is None else self._unknown(wrong)
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} ({self.prog} --help)\n")

    def _unknown(self, word: str) -> str:
        if not _is_flag(word):
            return f"{word}: not expected here"
        flag = word.partition("=")[0]
        nearest = _nearest(flag, self._option_string_actions)
        return f"{flag}: no such flag" + (f"; {nearest}" if nearest else "")

    def _knows(self, flag: str) -> bool:
        name = flag.partition("=")[0]
        return any(known.startswith(name) for known in self._option_string_actions)  # argparse takes abbreviations


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1


def _nearest(word: str, names: Iterable[str]) -> str:
    nearest = get_close_matches(word, list(names), n=1)
    return f"did you mean {nearest[0]}?" if nearest else ""

"""Every fenced block of README and docs does what it says, as it is printed, in a fresh folder.

What cannot be run here is skipped with its page, line and reason, which pytest lists at its end.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, Block, Tier, all_blocks, blocks_of
from tests.docs.given import GIVEN
from tests.docs.reader import Reader, ports_as_printed

BLOCKS = all_blocks()
STARTS = "starts the service"
TIERS: tuple[Tier, ...] = ("unit", "engine", "soak")
LISTED = [block for block in chain.from_iterable(BLOCKS.values()) if block.reason]


def pages_of(tier: Tier) -> list[str]:
    """Those with a block that this tier is the first to run."""
    return [page for page, blocks in BLOCKS.items() if any(block.tier == tier for block in blocks)]


def read(page: str, tier: Tier, reader: Reader) -> None:
    """Follows the page, also what cheaper tiers run: later blocks go on with it."""
    GIVEN.get(page, lambda _: None)(reader.folder)
    run = [block for block in BLOCKS[page] if block.tier in TIERS[: TIERS.index(tier) + 1] and block.marker != STARTS]
    for block in run:
        reader.follow(block)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with a_reader(tmp_path) as reader:
        yield reader


@contextmanager
def a_reader(folder: Path) -> Iterator[Reader]:
    reader = Reader(folder)
    try:
        yield reader
    finally:
        reader.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all pages, started by the block that says how; on the port that they name."""
    (block,) = {block.text: block for page in BLOCKS.values() for block in page if block.marker == STARTS}.values()
    with ports_as_printed(), a_reader(tmp_path_factory.mktemp("service")) as reader:
        reader.start_service(block)
        yield


@pytest.mark.parametrize("page", pages_of("unit"))
def test_blocks_of_a_page_run_as_printed(page: str, reader: Reader) -> None:
    read(page, "unit", reader)


@pytest.mark.engine
@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("page", pages_of("engine"))
def test_blocks_that_ask_a_service_run_as_printed(page: str, reader: Reader) -> None:
    read(page, "engine", reader)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("page", pages_of("soak"))
def test_blocks_of_minutes_run_as_printed(page: str, reader: Reader) -> None:
    with ports_as_printed():
        read(page, "soak", reader)


@pytest.mark.parametrize("block", LISTED, ids=str)
def test_a_block_that_is_not_run_is_listed(block: Block) -> None:
    pytest.skip(f"{block}: {block.reason}")


def test_every_block_is_run_or_listed() -> None:
    fences = sum(len(re.findall(r"^ *```", page.read_text(), re.MULTILINE)) for page in PAGES)
    run = [block for page in BLOCKS.values() for block in page if block.tier]
    assert not set(run) & {block for block in LISTED if block.marker != "minutes"}
    assert len({*run, *LISTED}) == fences / 2
    assert [f"{block}: {problem}" for block in {*run, *LISTED} for problem in block.problems()] == []


BROKEN = {
    "a command": ("```sh\ncoevo plan nothing.toml\ntrue\n```\n", "nothing.toml"),
    "a pipe": ("```sh\nfalse | cat\n```\n", "ended with 1"),
    "a variable": ("```sh\necho $NOBODY_SETS_THIS\n```\n", "NOBODY_SETS_THIS: unbound variable"),
    "python": ("```python\nimport coevo.nothing\n```\n", "ModuleNotFoundError"),
    "a key": ("<!-- docs: part of a recipe -->\n```toml\n[rollout]\npromts = 3\n```\n", "rollout.promts"),
    "a file": ("<!-- docs: file examples/chat.toml -->\n```toml\nname = 'chat'\n```\n", "not what examples/chat"),
    "lines of a source": ("<!-- docs: part of trainer/loop.py -->\n```python\nx = 1\n```\n", "not in trainer/loop.py"),
    "an output": ("```console\n$ echo 36 questions\n37 ...\n```\n", "printed\n36 questions"),
    "json": ("```json\n{'a': 1}\n```\n", "property name enclosed in double quotes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_block_that_is_broken_fails_with_its_line(name: str, reader: Reader) -> None:
    text, message = BROKEN[name]
    (block,) = blocks_of("page.md", f"Words.\n\n{text}")
    assert block.problems() == []
    with pytest.raises(AssertionError, match=rf"^page\.md:\d: (?s:.*){re.escape(message)}"):
        reader.follow(block)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\ncoevo doctor\n```\n", "no language ''"),
        ("```shell\ncoevo doctor\n```\n", "no language 'shell'"),
        ("<!-- docs: later -->\n```sh\ncoevo doctor\n```\n", "no marker 'later'"),
        ("```text\nOK\n```\n", "say whose `output` it is"),
    ],
)
def test_a_block_that_nobody_can_run_is_a_problem(text: str, problem: str) -> None:
    (block,) = blocks_of("page.md", text)
    assert problem in block.problems()[0]

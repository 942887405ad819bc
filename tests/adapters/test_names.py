"""Names and references: one spelling for each, and every hostile one refused in a line."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import UserError
from adapters.names import Ref, check_branch, check_name, is_name, is_start

HOSTILE = [
    "",
    "../../etc",
    "image%2f..",
    "image\\..\\x",
    "/etc/passwd",
    "a" * 49,
    "a" * 10_000,
    "im\u0430ge",  # a Cyrillic a
    "image\x00",
    "image\n",
    "Image",
    "1image",
    "-image",
    ".staging",
    "image ",
    "image/17",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_name_is_refused_in_one_short_line(text):
    assert not is_name(text)
    for check in (check_name, check_branch, Ref.parse):
        with pytest.raises(UserError) as error:
            check(text)
        message = str(error.value)
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 300


@pytest.mark.parametrize(
    "text",
    ["image@", "image@-1", "image@07", "image@1\n", "image@1@2", "image@\u0661", "@1", "image@1e3", "image@9999999999"],
)
def test_a_revision_has_one_spelling(text):
    with pytest.raises(UserError, match="names no adapter; take BRANCH or BRANCH@REVISION"):
        Ref.parse(text)


def test_the_base_has_no_revisions():
    assert Ref.parse("base") == Ref("base")
    with pytest.raises(UserError, match="the base has no revisions"):
        Ref.parse("base@0")


@pytest.mark.parametrize("text", ["base", "merged"])
def test_reserved_words_are_names_but_no_branches(text):
    assert check_name(text) == text
    with pytest.raises(UserError, match="reserved"):
        check_branch(text)


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,47}", fullmatch=True), st.none() | st.integers(0, 999_999_999))
def test_a_reference_survives_its_text(branch, revision):
    ref = Ref(branch, revision if branch != "base" else None)
    assert Ref.parse(str(ref)) == ref


@given(st.text(max_size=60))
def test_what_parses_is_written_the_same_way(text):
    try:
        ref = Ref.parse(text)
    except UserError:
        return
    assert str(ref) == text


def test_a_branch_starts_from_the_base_or_from_one_revision():
    assert is_start("base")
    assert is_start("text-expert@120")
    assert not any(map(is_start, ("text-expert", "base@1", "merged@1", "text@01", "text@")))


def test_names_are_light():
    heavy = "import sys, adapters.names; sys.exit(bool({'torch', 'vllm', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0

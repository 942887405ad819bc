"""Words: the shipped base keeps its own, a base of more capabilities has more, and who lacks some is told."""

from pathlib import Path

import pytest

from adapters.base import locate
from clients.cli import main
from trainer.commands.base import SHIPPED
from trainer.miniature.capabilities import CAPABILITIES, capability
from trainer.miniature.model import build_tokenizer
from trainer.miniature.words import without_words

ALL = (*SHIPPED, "shapes", "order")


def words_of(*names: str) -> list[str]:
    return [word for name in names for word in capability(name).words]


def saved(folder: Path, *names: str) -> Path:
    build_tokenizer(dict.fromkeys(words_of(*names))).save_pretrained(folder)
    return folder


def test_the_shipped_tokenizer_is_still_the_one_that_is_built() -> None:
    built = build_tokenizer(dict.fromkeys(words_of(*SHIPPED))).backend_tokenizer
    assert built.to_str(pretty=True) == (locate("miniature") / "tokenizer.json").read_text()


def test_further_words_come_after_those_of_the_shipped_base() -> None:
    shipped, all_of_them = (build_tokenizer(dict.fromkeys(words_of(*names))).get_vocab() for names in (SHIPPED, ALL))
    assert shipped.items() < all_of_them.items()
    assert {*words_of("shapes", "order")} <= all_of_them.keys()


def test_a_base_has_words_for_what_it_was_built_with(tmp_path: Path) -> None:
    assert without_words(locate("miniature"), CAPABILITIES) == ["order", "shapes"]
    assert without_words(saved(tmp_path / "all", *ALL), CAPABILITIES) == []
    assert without_words(saved(tmp_path / "one", "order"), CAPABILITIES) == ["shapes", "video"]


def test_another_model_reads_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 0, "content": "<|im_end|>"}]}')
    assert without_words(tmp_path, ["shapes"]) == without_words(tmp_path / "none", ["shapes"]) == []


def test_checking_what_a_base_cannot_read_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["base", "check", "--capabilities", "text", "shapes"]) == 2
    assert capsys.readouterr().err == (
        "coevo base: --base miniature has no words for shapes; take one built with them\n"
    )

"""Where a base lies."""

from pathlib import Path

import pytest

from adapters.base import locate
from adapters.errors import UserError


def test_the_miniature_is_in_the_package_and_small() -> None:
    folder = locate("miniature")
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(sizes.values()) <= 8_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= sizes.keys()


def test_a_checkpoint_folder_is_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a b c", "a b c: no such folder, and no hub name either"),
        ("owner/name", "owner/name: neither a folder nor downloaded yet; `hf download owner/name` fetches it"),
    ],
)
def test_a_base_that_is_not_there_is_told_in_one_line(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate(name)


def test_a_folder_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json in this folder"):
        locate(str(tmp_path))

"""Recipes that come with coevo are named, by a command and by `extends`, from whatever folder."""

from pathlib import Path

import pytest

from clients.cli import main
from trainer.recipe.file import load
from trainer.recipe.packaged import FOLDER, packaged_recipes, purpose

OWN = 'extends = "{}"\nname = "own"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["miniature", "miniature/compare", "paper-copd3-published-lr"])
def test_a_name_is_the_recipe_that_comes_with_coevo(name: str) -> None:
    assert load(Path(name)) == load(FOLDER / f"{name}.toml")


def test_extends_takes_names_and_parts(here: Path) -> None:
    path = here / "own.toml"
    path.write_text('extends = ["paper-copd3", "parts/benchmarks"]\nname = "own"\n')
    assert load(path).evaluation == load(Path("paper-copd3-benchmarks")).evaluation


@pytest.mark.parametrize("file", ["miniature", "miniature.toml"])
def test_a_file_beside_the_recipe_wins(here: Path, file: str) -> None:
    folder = here / "elsewhere"
    folder.mkdir()
    (folder / file).write_text('extends = "miniature/mixed"\nname = "beside"\nseed = 7\n')
    path = folder / "own.toml"
    path.write_text(OWN.format("miniature"))
    assert load(path).seed == 7
    assert load(Path("miniature")).seed == 0  # what lies beside a recipe is not beside a command


def test_a_file_where_the_command_is_typed_wins(here: Path) -> None:
    (here / "miniature.toml").write_text(OWN.format("miniature") + "seed = 7\n")
    assert load(Path("miniature")).seed == 7
    (here / "miniature").mkdir()  # a run's folder is no recipe
    assert load(Path("miniature")).seed == 7


def test_a_recipe_extends_the_packaged_one_of_its_own_name(here: Path) -> None:
    path = here / "miniature.toml"
    path.write_text(OWN.format("miniature"))
    assert load(path).capabilities == load(FOLDER / "miniature.toml").capabilities


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("minature", "did you mean miniature, which comes with coevo?"),
        ("miniature/compare-smok", "did you mean miniature/compare-smoke, which comes with coevo?"),
        ("recipes/miniature.toml", "did you mean miniature, which comes with coevo?"),
        ("paper/mpod.toml", "did you mean paper/mopd, which comes with coevo?"),
        ("xyzzy", "`coevo recipes` lists those that come with coevo"),
    ],
)
def test_a_wrong_name_is_told_with_the_nearest(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", typed]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"coevo plan: {typed}: no such recipe; ")
    assert said in line


def test_a_wrong_name_in_extends_is_told_with_the_nearest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own.toml").write_text(OWN.format("minature"))
    assert main(["plan", "own"]) == 2
    assert "minature: no such recipe; did you mean miniature, which comes with coevo?" in capsys.readouterr().err


def test_every_recipe_says_in_a_sentence_what_it_is_for() -> None:
    said = {name: purpose(file) for name, file in packaged_recipes().items()}
    assert said["miniature/mopd"].startswith("MOPD: three experts first; then a fresh student")
    del said["parts/benchmarks"]  # no recipe, and not listed
    assert [name for name, words in said.items() if not words.endswith(".") or len(words) > 250] == []


def test_names_are_listed_without_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    names = [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[:3] == ["gpu-1x24g-2b", "gpu-1x80g-4b", "miniature"]
    assert set(packaged_recipes()) - set(names) == {"parts/benchmarks"}

"""The wheel: built, installed outside the checkout beside the dependencies that are there, and used by its command."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PACKAGES = ("adapters", "bench", "clients", "recipes", "service", "trainer")
NOT_SHIPPED = ("bench/results/",)
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
BRANCHES = ("text", "image", "video")
TINY = (
    "method.cycles=1",
    "method.rlvr_steps=1",
    "method.opd_steps=1",
    "rollout.prompts=2",
    "rollout.group_size=2",
    "evaluation.questions=2",
    "evaluation.overlap_prompts=2",
    "evaluation.answers.samples=0",
    *(f"capabilities.{name}.data.size=16" for name in BRANCHES),
)

Coevo = Callable[..., subprocess.CompletedProcess[str]]


def files_of(folder: Path) -> set[str]:
    """What lies in the packages of a tree and is meant to be shipped."""
    paths = [path for package in PACKAGES for path in (folder / package).rglob("*") if path.is_file()]
    return {name for path in paths if not (name := path.relative_to(folder).as_posix()).startswith(NOT_SHIPPED)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree: setuptools keeps a folder `build` in it, from which files of before would come along."""
    folder = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Without isolation, for that would fetch setuptools anew.
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, sources], check=True)
    (path,) = out.glob("coevo-*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel. Of the one that runs this test it has the dependencies, by a path that is
    searched later; the checkout is not on it, because `.pth` files are read in an environment's own folder alone."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    return folder


@pytest.fixture
def coevo(environment: Path, tmp_path: Path) -> Coevo:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [environment / "bin" / "coevo", *words]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600)

    return call


def test_the_wheel_carries_every_file_of_its_packages(wheel: Path, sources: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert carried == files_of(sources)


def test_modules_come_from_the_wheel_alone(environment: Path, tmp_path: Path) -> None:
    program = f"import sys, {', '.join(PACKAGES)}\nfor name in {PACKAGES}: print(*sys.modules[name].__path__)"
    command = [environment / "bin" / "python", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    folders = [Path(line) for line in done.stdout.splitlines()]
    assert [folder.name for folder in folders] == list(PACKAGES)
    assert [folder for folder in folders if not folder.is_relative_to(environment)] == []


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ("--version", "coevo 0.1.0\n"),
        ("recipes", "miniature\tThe whole method in minutes on two CPU cores"),
        ("recipe keys group_size", "rollout.group_size\n"),
        ("check miniature", "capabilities.text.reward: "),
        ("plan paper/mopd", "\topd\t"),
        ("base path", "site-packages/trainer/miniature/base\n"),
    ],
)
def test_an_installed_command_works_outside_the_checkout(words: str, printed: str, coevo: Coevo) -> None:
    done = coevo(*words.split())
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_an_installed_coevo_makes_a_whole_run(coevo: Coevo, tmp_path: Path) -> None:
    changes = [word for change in TINY for word in ("--set", change)]
    done = coevo("run", "miniature", *changes, "--out", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"merged +the merged model", done.stdout), done.stdout
    assert {path.name for path in (tmp_path / "out/store").iterdir()} >= set(BRANCHES)

"""The command line: quick help, one line for a user's error, the right exit code."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from clients.cli import COMMANDS, SHELLS, main


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "clients.cli", *words], capture_output=True, text=True, timeout=120)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys, clients.cli\n"
        "try: clients.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'vllm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("heavy: []")
    for name in COMMANDS:
        assert f"\n    {name}" in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([name, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: coevo {name}" in capsys.readouterr().out


def test_a_users_error_is_one_line_and_exit_code_2() -> None:
    done = run("base", "path", "nowhere/at-all")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "coevo base: nowhere/at-all: neither a folder nor downloaded yet; `hf download nowhere/at-all` fetches it\n"
    )


def test_base_path_prints_the_folder_of_the_miniature() -> None:
    done = run("base", "path")
    assert done.returncode == 0
    assert done.stdout.endswith("trainer/miniature/base\n")


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    program = f"set -o pipefail; {sys.executable} -m clients.cli plan recipes/miniature.toml | true"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"coevo {version('coevo')}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("rnu", "coevo: rnu: no such command; did you mean run? (coevo --help)"),
        ("xyzzy", f"coevo: xyzzy: no such command; there are {', '.join(COMMANDS)} (coevo --help)"),
        ("", "coevo: COMMAND: missing (coevo --help)"),
        ("--versoin", "coevo: --versoin: no such flag; did you mean --version? (coevo --help)"),
        ("plan x.toml --sett a=b", "coevo plan: --sett: no such flag; did you mean --set? (coevo plan --help)"),
        ("plan --sett=a=b x.toml", "coevo plan: --sett: no such flag; did you mean --set? (coevo plan --help)"),
        # The flag that is mistyped, and not the one that is missing because of it.
        ("filter x.toml text --otu y", "coevo filter: --otu: no such flag; did you mean --out? (coevo filter --help)"),
        ("plan x.toml --zzz", "coevo plan: --zzz: no such flag (coevo plan --help)"),
        ("plan x.toml y.toml", "coevo plan: y.toml: not expected here (coevo plan --help)"),
        ("plan", "coevo plan: RECIPE: missing (coevo plan --help)"),
        ("run x.toml --port y", "coevo run: --port: invalid int value: 'y' (coevo run --help)"),
        ("base biuld", "coevo base: biuld: no such action; did you mean build? (coevo base --help)"),
        ("base build --uot x", "coevo base build: --uot: no such flag; did you mean --out? (coevo base build --help)"),
        ("merge x --method svt", "coevo merge: --method svt: no such value; did you mean svd? (coevo merge --help)"),
    ],
)
def test_a_mistyped_word_is_one_line_with_the_nearest_name(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(words.split())
    assert exit_info.value.code == 2
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"{line}\n")


def test_an_abbreviation_is_the_flag_that_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["base", "build", "--ou", "x"]) == 2
    assert capsys.readouterr().err == "coevo base: x: exists; name a new folder\n"


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    """The completions of every shell. In one process: it imports every bench."""
    program = (
        "import contextlib, io, json, clients.cli\n"
        "scripts = {}\n"
        "for shell in clients.cli.SHELLS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        clients.cli.main(['--print-completion', shell])\n"
        "    scripts[shell] = out.getvalue()\n"
        "print(json.dumps(scripts))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    return json.loads(done.stdout)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["me"], {"merge"}),
        (["--ver"], {"--version"}),
        (["plan", "--s"], {"--set"}),
        (["base", ""], {"path", "build", "check"}),
        (["base", "check", "--split", "t"], {"train", "test"}),
        (["bench", "gp"], {"gpu_step"}),
        (["bench", "queue", "--m"], {"--most"}),
        (["plan", "mine"], {"mine.toml", "mine"}),
        (["run", "--out", "mine"], {"mine"}),
    ],
)
def test_bash_completes_commands_flags_values_and_files(
    words: list[str], completions: set[str], scripts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.toml").touch()
    # As bash calls it: the words so far, and which of them the cursor is in.
    typed = " ".join(f"'{word}'" for word in ("coevo", *words))
    program = f"{scripts['bash']}\nCOMP_WORDS=({typed})\nCOMP_CWORD={len(words)}\n_shtab_coevo\n"
    program += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert {line.strip() for line in done.stdout.splitlines() if not line.startswith("-h")} >= completions


@pytest.mark.reference
@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_every_shell_names_every_command(shell: str, scripts: dict[str, str]) -> None:
    assert [name for name in COMMANDS if name not in scripts[shell]] == []

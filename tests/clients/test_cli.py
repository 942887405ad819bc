"""The command line: quick help, one line for a user's error, the right exit code."""

import subprocess
import sys

import pytest

from clients.cli import COMMANDS, main


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


def test_an_unknown_command_is_refused() -> None:
    assert run("bake").returncode == 2

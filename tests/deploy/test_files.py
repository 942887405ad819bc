"""What stands beside the chart in deploy/: the overlay, the script for Slurm, the task for SkyPilot."""

import contextlib
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest
import yaml

from clients.cli import main
from tests.deploy.chart import ROOT, objects, rendered
from trainer.recipe.file import load

KUSTOMIZE, SLURM, SKYPILOT = (
    ROOT / "deploy" / name for name in ("kustomize", "slurm/coevo.sbatch", "skypilot/coevo.yaml")
)
KUBECTL = shutil.which("kubectl")
BRANCHES = ("text", "image", "video")
SKYPILOT_FIELDS: dict[str, set[str]] = {
    "": {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "volumes", "file_mounts", "setup", "run"},
    "resources": {"accelerators", "cpus", "memory", "disk_size", "disk_tier", "use_spot", "infra", "image_id", "ports"}
    | {"labels", "autostop", "any_of", "ordered", "job_recovery", "instance_type", "network_tier", "max_hourly_cost"},
    "job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
    "storage": {"name", "source", "store", "persistent", "mode", "config"},
}  # fmt: skip
"""What docs.skypilot.co says of a task's YAML, under reference/yaml-spec."""


def test_the_base_of_the_overlays_is_the_chart() -> None:
    """If not: python -m tests.deploy.chart > deploy/kustomize/base/coevo.yaml"""
    assert (KUSTOMIZE / "base/coevo.yaml").read_text() == rendered("cpu")


@pytest.mark.skipif(KUBECTL is None, reason="no kubectl here")
def test_the_overlay_builds_valid_objects_of_its_namespace_and_registry() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", KUSTOMIZE / "overlay"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    built = objects(done.stdout)
    assert len(built) == len(objects(rendered("cpu"))) + 1  # the namespace
    for (kind, _), document in built.items():
        kubernetes_validate.validate(document, "1.37", strict=True)
        assert kind == "Namespace" or document["metadata"]["namespace"] == "coevo"
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert images == {
        "valkey/valkey:9-alpine",
        "registry.example.com/coevo-service:cpu",
        "registry.example.com/coevo-trainer:cpu",
    }
    store, _ = built["StatefulSet", "coevo-service"]["spec"]["volumeClaimTemplates"]
    assert store["spec"]["resources"]["requests"]["storage"] == "50Gi"
    assert store["spec"]["storageClassName"] == "fast"


# ---- Slurm ----


def test_bash_and_shellcheck_read_the_script_of_slurm() -> None:
    for words in (["bash", "-n"], [str(Path(sys.executable).with_name("shellcheck")), "--severity=style"]):
        done = subprocess.run([*words, SLURM], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


def slurm(folder: Path, nodes: int, *words: str, **environ: str) -> "subprocess.Popen[str]":
    """The script as Slurm starts it, on nodes that are all this machine: `srun` runs its command here."""
    shims = folder / "bin"
    shims.mkdir()
    names = " ".join(["localhost", "n1"][:nodes])
    srun = 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"'
    for name, script in {"scontrol": f"printf '%s\\n' {names}", "srun": srun}.items():
        (shims / name).write_text(f"#!/bin/sh\n{script}\n")
        (shims / name).chmod(stat.S_IRWXU)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("COEVO_")}
    path = f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", SLURM, *words],
        cwd=folder,
        env=inherited | {"PATH": path, "SLURM_JOB_NODELIST": "n[0-1]", "OMP_NUM_THREADS": "1"} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("nodes", "words", "line"),
    [
        (2, (), "which recipe? sbatch deploy/slurm/coevo.sbatch RECIPE [--set KEY=VALUE ...]"),
        (1, ("miniature",), "needs two nodes; on one: sbatch --wrap 'coevo run miniature --resume --out out/slurm'"),
    ],
)
def test_a_mistake_with_the_script_is_one_line(nodes: int, words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    with slurm(tmp_path, nodes, *words) as process:
        said, complaint = process.communicate(timeout=60)
    assert (process.returncode, said, complaint) == (2, "", f"coevo.sbatch: {line}\n")


def test_the_script_gives_workers_less_time_than_slurm_gives_it() -> None:
    text = SLURM.read_text()
    (notice,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.MULTILINE)
    (grace,) = re.findall(r"^grace=(\d+)", text, re.MULTILINE)
    assert int(grace) + 60 <= int(notice)  # and the service its engine


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_script_makes_a_whole_run_though_a_worker_is_killed(tmp_path: Path) -> None:
    with contextlib.ExitStack() as sockets:
        probes = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        port, queue_port = (str(probe.getsockname()[1]) for probe in probes)
    changes = ("method.cycles=1", "method.rlvr_steps=2", "method.opd_steps=1", "rollout.prompts=2")
    words = [f"--set={change}" for change in changes]
    with slurm(tmp_path, 2, "miniature", *words, COEVO_PORT=port, COEVO_QUEUE_PORT=queue_port) as process:
        log = tmp_path / "out/slurm/logs/worker-n1.log"
        while process.poll() is None and not (log.exists() and " works for " in log.read_text()):
            time.sleep(0.5)
        (worker,) = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "trainer.worker" in child.cmdline() and not any("torchrun" in word for word in child.cmdline())
        ]
        worker.kill()
        said, complaint = process.communicate()
    assert process.returncode == 0, complaint
    assert said == f"coevo.sbatch: the run is finished: {tmp_path / 'out/slurm'}\n"
    assert log.read_text().count(" works for ") == 2
    assert {len(list((tmp_path / "out/slurm/store" / name).glob("[0-9]*"))) for name in ("text", "image", "video")} == {
        4
    }


# ---- SkyPilot ----


def task() -> dict[str, Any]:
    return yaml.safe_load(SKYPILOT.read_text())


def test_the_task_has_only_fields_of_skypilot() -> None:
    fields = task()
    sections = {
        "": fields,
        "resources": fields["resources"],
        "job_recovery": fields["resources"]["job_recovery"],
        **fields["file_mounts"],
    }
    for name, section in sections.items():
        assert set(section) <= SKYPILOT_FIELDS["storage" if name.startswith("/") else name], name


def test_the_task_runs_a_command_that_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its scripts as bash reads them, its recipe as coevo does, with the base that it downloads."""
    fields = task()
    for name in ("setup", "run"):
        done = subprocess.run(["bash", "-n"], input=fields[name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    recipe = ROOT / fields["envs"]["RECIPE"]
    assert load(recipe).base.name == fields["envs"]["BASE"]
    command = shlex.split(fields["run"].splitlines()[-1])
    assert command[:3] == ["coevo", "run", "$RECIPE"]
    with pytest.raises(SystemExit) as end:  # every flag is known, or argparse would name it
        main([*command[1:2], str(tmp_path / "none.toml"), *command[3:], "--help"])
    assert end.value.code == 0
    assert "usage: coevo run" in capsys.readouterr().out

"""The containers for real: built, run to the end, killed one by one, resumed.  `make compose-test`

Needs no registry: `apt-get install docker.io docker-compose debootstrap`, as root. Without an engine it says so in one
line and ends with 0. What it starts and makes it removes. It prints how large the images are and how long things took.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.compose.engine import Docker, UnavailableError, engine, make_images
from tests.compose.stack import BRANCHES, COMPILERS, ROOT, WORKERS, Stack

SMALL = {"rollout.prompts": 2, "rollout.group_size": 4, "method.rlvr_steps": 2, "method.opd_steps": 1}
STEPS = 3
"""Steps of a branch in one cycle with these numbers."""
SHORT, LONG = int(os.environ.get("CYCLES", "1")), int(os.environ.get("CYCLES_WITH_FAULTS", "8"))
TARGETS = ("service", "trainer")
SCORE = {
    "sequences": [
        {"prompt": {"messages": [{"role": "user", "content": "37+2*4?"}]}, "completion": "plain2*4=8;37+8=45"},
    ]
}


def main() -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="coevo-compose-") as folder, engine(Path(folder)) as docker:
            said = run(docker, Path(folder))
    except UnavailableError as error:
        print(f"compose-test: skipped: {error}")
        return 0
    print("\n".join(f"{label:<58}{value:>12}" for label, value in said))
    return 0


def run(docker: Docker, folder: Path) -> list[tuple[str, str]]:
    said: list[tuple[str, str]] = []
    defaults = default_images()
    images = make_images(docker, folder, *defaults)
    for target in TARGETS:
        arguments = [
            f"--build-arg={name}={image}"
            for name, image in (("BASE_IMAGE", images.base), ("BUILD_IMAGE", images.build))
        ]
        took = docker.build(ROOT, f"coevo-test-{target}", "--target", target, *arguments)
        size = int(docker.run("image", "inspect", "--format", "{{.Size}}", f"coevo-test-{target}"))
        say(said, f"{target}: built", f"{took:.0f} s")
        say(said, f"{target}: size of the image", f"{size / 1e9:.2f} GB")
    key = secrets.token_urlsafe(16)
    stack = Stack(docker, "coevo-test", images, free_port(), key)
    for target in TARGETS:
        check_image(docker, f"coevo-test-{target}", images.base, key)
    try:
        check_a_short_run(stack, said)
        stack.down("--volumes")
        check_faults(stack, said)
    finally:
        with contextlib.suppress(Exception):
            stack.down("--volumes", "--timeout", "5")
    return said


def say(said: list[tuple[str, str]], label: str, value: str) -> None:
    said.append((label, value))
    print(f"compose-test: {label}: {value}", flush=True)


def default_images() -> tuple[str, str]:
    """Images of the base and of the queue that compose.yaml takes where nothing is set."""
    images = dict(re.findall(r"\$\{(COEVO_\w+_IMAGE):-([^}]+)\}", (ROOT / "compose.yaml").read_text()))
    return images["COEVO_BASE_IMAGE"], images["COEVO_REDIS_IMAGE"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ---- what must hold ----


def check_image(docker: Docker, image: str, base: str, key: str) -> None:
    """No root, no compiler, nothing secret, nothing of the build."""
    in_it = ["run", "--rm", "--network", "none", image]
    assert docker.run("image", "inspect", "--format", "{{.Config.User}}", image) == "1000:1000"
    assert docker.run(*in_it, "id", "-u") == "1000"
    for compiler in COMPILERS:
        compiler_path = docker.run(*in_it, "sh", "-c", f"command -v {compiler} || true")
        assert not compiler_path, f"{image} has {compiler_path}"
    history = docker.run("history", "--no-trunc", image) + docker.run("image", "inspect", image)
    for secret in (key, "PIP_", "find-links", "ca.crt"):
        assert secret not in history, f"{image} tells {secret}"
    read = ["sha256sum", "/etc/ssl/certs/ca-certificates.crt"]
    assert docker.run(*in_it, *read) == docker.run("run", "--rm", "--network", "none", base, *read)
    modules = ["pytest", "pip", "matplotlib", "triton", *(["vllm"] if "trainer" in image else ["datasets", "peft"])]
    there = f"from importlib.util import find_spec; print([m for m in {modules} if find_spec(m)])"
    assert docker.run(*in_it, "python", "-c", there) == "[]"
    assert docker.run(*in_it, "python", "-c", "import torch; print(torch.version.cuda)") == "None"


def check_a_short_run(stack: Stack, said: list[tuple[str, str]]) -> None:
    """With its times; and what is true of containers that run."""
    began = time.monotonic()
    stack.up(SMALL | {"method.cycles": SHORT})
    say(said, "from `up` until the workers are started", f"{time.monotonic() - began:.0f} s")
    stack.wait_until("there is a first step", lambda: any(stack.heads().values()))
    say(said, "from `up` to the first step", f"{time.monotonic() - began:.0f} s")
    check_containers(stack)
    stack.wait_for_end(SHORT * STEPS)
    say(said, f"from `up` to the end, {SHORT * STEPS} steps of each branch", f"{time.monotonic() - began:.0f} s")
    status, answer = stack.ask("/logprobs?adapter=image", SCORE)
    assert status == 200
    assert answer["adapters"][0]["revision"] == SHORT * STEPS
    assert stack.ask("/logprobs?adapter=image", SCORE, key="wrong")[0] == 401
    curl(stack)
    check_commands(stack)
    check_that_they_stay_ended(stack)


def curl(stack: Stack) -> None:
    """As a person asks."""
    command = ["curl", "--silent", "--fail", f"{stack.url}/logprobs?adapter=image", "-H", f"x-api-key: {stack.key}",
               "-H", "content-type: application/json", "-d", json.dumps(SCORE)]  # fmt: skip
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["adapters"][0]["adapter"] == "image"


def check_commands(stack: Stack) -> None:
    """What a person does with a run that is finished, as docs/containers.md says it."""
    recipe = "recipes/miniature.toml"
    output = stack("run", "--rm", "-T", "coordinator", "coevo", "eval", recipe, "--adapter", "text", "--questions", "4")
    assert "text" in output
    stack("exec", "-T", "service", "coevo", "merge", "store", "--base", "miniature", "--out", "runs/merged")
    assert "model.safetensors" in stack.inside("service", "ls", "runs/merged")
    assert "text" in stack("run", "--rm", "-T", "coordinator", "coevo", "jobs")


def check_containers(stack: Stack) -> None:
    published: list[tuple[str, str]] = []
    for service in ("redis", "service", "coordinator", *WORKERS):
        container = stack.inspect(service)
        host = container["HostConfig"]
        ports = [port for bound in container["NetworkSettings"]["Ports"].values() for port in bound or ()]
        published += [(service, port["HostIp"]) for port in ports]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert not host["Privileged"]
        status = stack.inside(service, "cat", "/proc/1/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert facts["Uid"].split()[0] != "0", service
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0, service
        assert facts["NoNewPrivs"] == "1", service
    assert published == [("service", "127.0.0.1")]


def check_that_they_stay_ended(stack: Stack) -> None:
    counts = {name: stack.inspect(name)["RestartCount"] for name in WORKERS}
    time.sleep(5)  # longer than an engine waits before it starts one again
    assert counts == {name: stack.inspect(name)["RestartCount"] for name in WORKERS}
    assert not any(stack.inspect(name)["State"]["Running"] for name in WORKERS)


def check_faults(stack: Stack, said: list[tuple[str, str]]) -> None:
    """Each of them dies in mid-run; then everything goes down and comes up again."""
    end = LONG * STEPS
    budget = SMALL | {"method.cycles": LONG}
    stack.up(budget)
    for number, victim in enumerate(("worker-image", "service", "redis"), start=1):
        stack.wait_for(number * end // 5)
        took = go_on(stack, lambda victim=victim: stack.kill(victim))
        say(said, f"{victim} killed: until every branch has made a step", f"{took:.0f} s")
    stack.wait_for(4 * end // 5)

    def down_and_up() -> None:
        stack.down()
        stack.up(budget)

    say(said, "down, up: until every branch has made a step", f"{go_on(stack, down_and_up):.0f} s")
    stack.wait_for_end(end)
    check_that_nothing_was_lost(stack, end)


def go_on(stack: Stack, happens: Callable[[], None]) -> float:
    """Seconds until every branch has published what comes after its head: all that is lost is the step under way."""
    before = stack.heads()
    began = time.monotonic()
    happens()
    stack.wait_until("the service answers", lambda: bool(stack.heads()))
    after = stack.heads()
    assert all(after[name] >= before[name] for name in BRANCHES), f"{before} became {after}"
    stack.wait_until("all go on", lambda: all(stack.heads().get(name, 0) > before[name] for name in BRANCHES))
    return time.monotonic() - began


def check_that_nothing_was_lost(stack: Stack, end: int) -> None:
    """Every revision is there, and none was made twice."""
    assert stack.heads() == dict.fromkeys(BRANCHES, end)
    log = stack.inside("service", "sh", "-c", "cat runs/*/events.jsonl")
    events = [json.loads(line) for line in log.splitlines()]
    steps = [(event["branch"], event["step"]) for event in events if event["kind"] == "step"]
    assert len(steps) == len(set(steps))
    manifests = stack.inside("service", "sh", "-c", "cd store && ls -d */*/manifest.json").split()
    assert sorted(manifests) == sorted(f"{name}/{n}/manifest.json" for name in BRANCHES for n in range(end + 1))


if __name__ == "__main__":
    sys.exit(main())

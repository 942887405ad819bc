"""The stack of compose.yaml as it runs: commands of Compose, its containers, what the service says, what must hold."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.compose.engine import Docker, Images, UnavailableError, client

ROOT = Path(__file__).parents[2]
BRANCHES = ("text", "image", "video")
WORKERS = tuple(f"worker-{branch}" for branch in BRANCHES)
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "tcc", "rustc", "go", "ld", "as")
PATIENCE_S = 600.0


def compose() -> list[str]:
    """$COMPOSE, the plugin, or docker-compose."""
    program, _ = client()
    choices = [os.environ["COMPOSE"].split()] if os.environ.get("COMPOSE") else [[program, "compose"]]
    if old := shutil.which("docker-compose"):
        choices.append([old])
    for words in choices:
        if subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    raise UnavailableError("no Compose; apt-get install docker-compose")


class Stack:
    def __init__(self, docker: Docker, project: str, images: Images, port: int, key: str) -> None:
        self.docker, self.url, self.key = docker, f"http://127.0.0.1:{port}", key
        self._project = project
        self._compose = compose()
        self._environ = {
            "COEVO_BASE_IMAGE": images.base,
            "COEVO_REDIS_IMAGE": images.redis,
            "COEVO_SERVICE_IMAGE": "coevo-test-service",
            "COEVO_TRAINER_IMAGE": "coevo-test-trainer",
            "COEVO_PUBLISH": f"127.0.0.1:{port}",
            "COEVO_API_KEY": key,
        }

    # ---- commands ----

    def __call__(self, *words: str, **environ: str) -> str:
        done = subprocess.run(
            [*self._compose, "--project-name", self._project, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env=os.environ | self.docker.environ | self._environ | environ,
        )
        assert done.returncode == 0, f"compose {' '.join(words)}:\n{done.stderr[-3000:]}\n{self.last_words()}"
        return done.stdout.strip()

    def up(self, budget: Mapping[str, int]) -> None:
        """Returns when everything is started, the workers after the service has scored."""
        self("up", "--detach", "--no-build", COEVO_SET=" ".join(f"--set {key}={n}" for key, n in budget.items()))

    def down(self, *words: str) -> None:
        self("down", *words)

    def kill(self, service: str) -> None:
        """As the kernel does it: `docker kill` would count as a wish that it stay stopped."""
        before = self.inspect(service)
        os.kill(int(before["State"]["Pid"]), signal.SIGKILL)
        self.wait_until(
            f"{service} starts again", lambda: self.inspect(service)["RestartCount"] > before["RestartCount"]
        )

    def last_words(self) -> str:
        ids = self.docker.run("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self._project}")
        logs = (
            subprocess.run([self.docker.program, "logs", "--tail", "15", id], capture_output=True, text=True,
                           env=os.environ | self.docker.environ, check=False)
            for id in ids.split()
        )  # fmt: skip
        return "\n".join(f"----\n{log.stdout}{log.stderr}" for log in logs)

    # ---- what can be seen ----

    def inspect(self, service: str) -> Any:
        return json.loads(self.docker.run("inspect", self._id(service)))[0]

    def inside(self, service: str, *words: str, check: bool = True) -> str:
        return self.docker.run("exec", self._id(service), *words, check=check)

    def ask(self, path: str, body: object = None, key: str | None = None) -> tuple[int, Any]:
        request = urllib.request.Request(f"{self.url}{path}", None if body is None else json.dumps(body).encode())
        request.add_header("content-type", "application/json")
        request.add_header("x-api-key", self.key if key is None else key)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None
        except OSError:
            return 0, None

    def heads(self) -> dict[str, int]:
        """Empty while the service is away."""
        _, said = self.ask("/adapters")
        return {name: said["branches"].get(name, {}).get("head", 0) for name in BRANCHES} if said else {}

    def wait_until(self, condition: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, f"it is not so that {condition}\n{self.last_words()}"
            time.sleep(0.2)

    def wait_for(self, revision: int) -> None:
        """Until every branch is there; none may go back meanwhile."""
        seen: dict[str, int] = dict.fromkeys(BRANCHES, 0)

        def are_there() -> bool:
            heads = self.heads()
            assert all(heads[name] >= seen[name] for name in heads), f"{seen} became {heads}"
            seen.update(heads)
            return min(seen.values()) >= revision

        self.wait_until(f"every branch is at {revision}", are_there)

    def wait_for_end(self, revision: int) -> None:
        self.wait_for(revision)
        ends = ("coordinator", *WORKERS)
        self.wait_until("the workers end", lambda: all(not self.inspect(name)["State"]["Running"] for name in ends))
        assert {name: self.inspect(name)["State"]["ExitCode"] for name in ends} == dict.fromkeys(ends, 0)

    def _id(self, service: str) -> str:
        labels = (f"com.docker.compose.project={self._project}", f"com.docker.compose.service={service}")
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        (id,) = self.docker.run("ps", "--all", "--quiet", *filters).split()
        return id

"""A container engine to test with, and images that need no registry.

An engine that answers is used as it is; else `dockerd` is started with everything it keeps in a folder of ours. Where
no registry answers, the base image is made by debootstrap, the queue's from Debian's redis-server, and packages are
installed in an image that also has the certificates and the wheels of this machine.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
STARTS = ((), ("--iptables=false", "--ip6tables=false"), ("--iptables=false", "--storage-driver=vfs"))
"""Flags of dockerd, the plain one first; the others are for kernels that lack something."""
QUEUE_IMAGE = """\
FROM {base}
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server \\
 && useradd --uid 999 --no-create-home queue && install -d -o queue /data
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["redis-server", "--protected-mode", "no"]
"""
BUILD_IMAGE = """\
FROM {base}
COPY ca.crt /etc/ssl/certs/ca-certificates.crt
COPY wheels /wheels
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_FIND_LINKS=/wheels
"""


class UnavailableError(Exception):
    """This machine cannot run containers."""


@dataclass(frozen=True, slots=True)
class Images:
    """Names of images that the stack is made of."""

    base: str
    build: str
    redis: str


@dataclass(slots=True)
class Docker:
    """The client of an engine."""

    environ: dict[str, str]
    images: list[str] = field(default_factory=list[str])
    """Images that were not there before."""

    def run(self, *words: str, check: bool = True, timeout_s: float = 1800.0, **more: object) -> str:
        done = subprocess.run(
            [self.program, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=os.environ | self.environ,
            **more,  # type: ignore[call-overload]
        )
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(words)}: {done.stderr[-3000:]}")
        return done.stdout.strip()

    @property
    def program(self) -> str:
        return client()[0]

    def has(self, image: str) -> bool:
        return bool(self.run("images", "--quiet", image))

    def build(self, context: Path, tag: str, *words: str) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        self.images.append(tag)
        # the host's network: packages come the way that this machine gets them
        self.run("build", "--network", "host", "--tag", tag, *words, str(context), timeout_s=3600)
        return time.monotonic() - began

    def remove(self) -> None:
        if self.images:
            self.run("rmi", "--force", *self.images, check=False)


@functools.cache
def client() -> tuple[str, dict[str, str]]:
    """A docker that builds with BuildKit: older ones have it built in, newer ones as a plugin. Else one that does
    without."""
    programs = [path for path in (shutil.which("docker"), "/usr/bin/docker") if path and Path(path).exists()]
    for program in programs:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"version (\d+)", said)
        if (version and int(version[1]) < 23) or _says([program, "buildx", "version"]):
            return program, {"DOCKER_BUILDKIT": "1"}
    if not programs:
        raise UnavailableError("no docker; apt-get install docker.io docker-compose debootstrap")
    return programs[0], {"DOCKER_BUILDKIT": "0"}


def _says(command: Sequence[str], timeout_s: float = 20.0, **environ: str) -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, env=os.environ | environ, check=False)
        return done.returncode == 0
    return False


@contextlib.contextmanager
def engine(folder: Path) -> Generator[Docker]:
    program, environ = client()
    if _says([program, "info"]):
        docker = Docker(environ)
        try:
            yield docker
        finally:
            docker.remove()
        return
    with _started(folder) as socket:
        yield Docker(environ | {"DOCKER_HOST": socket})


@contextlib.contextmanager
def _started(folder: Path) -> Generator[str]:
    """An engine of our own, with nothing of it left afterwards."""
    program, _ = client()
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise UnavailableError("no container engine answers, and none can be started here (root and dockerd needed)")
    socket = f"unix://{folder / 'docker.sock'}"
    log = folder / "dockerd.log"
    for flags in STARTS:
        folders = {"data-root": "root", "exec-root": "exec", "pidfile": "docker.pid"}
        state = [f"--{name}={folder / path}" for name, path in folders.items()]
        command = ["dockerd", f"--host={socket}", "--bridge=none", *state, *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if _says([program, "info"], DOCKER_HOST=socket):
                    yield socket
                    return
                time.sleep(0.5)
        finally:
            _end(process, folder)
    lines = log.read_text().strip().splitlines()
    raise UnavailableError(f"dockerd does not start here: {lines[-1] if lines else 'it says nothing'}")


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """With the mounts that it leaves: a folder with one cannot be removed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if Path(mount).is_relative_to(folder)]):
        subprocess.run(["umount", mount], check=False)


def make_images(docker: Docker, folder: Path, base: str, redis: str) -> Images:
    """From the registry where there is one, else on this machine."""
    if all(docker.has(image) or _pulls(docker, image) for image in (base, redis)):
        return Images(base, base, redis)
    images = Images("coevo-test-base", "coevo-test-build", "coevo-test-redis")
    if not docker.has(images.base):
        _debootstrap(docker, folder, images.base)
    context = folder / "context"
    (context / "wheels").mkdir(parents=True)
    shutil.copy(ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt", context / "ca.crt")
    for links in os.environ.get("PIP_FIND_LINKS", "").split():
        if Path(links).is_dir():
            shutil.copytree(links, context / "wheels", dirs_exist_ok=True)
    for text, tag in ((BUILD_IMAGE, images.build), (QUEUE_IMAGE, images.redis)):
        (context / "Dockerfile").write_text(text.format(base=images.base))
        docker.build(context, tag)
    return images


def _pulls(docker: Docker, image: str) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        docker.run("pull", "--quiet", image, check=False, timeout_s=300)
        return docker.has(image)
    return False


def _debootstrap(docker: Docker, folder: Path, tag: str) -> None:
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise UnavailableError("no registry answers, and no base image can be made (root and debootstrap needed)")
    root = folder / "debian"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root)], capture_output=True, text=True
    )
    if done.returncode:
        raise UnavailableError(f"debootstrap failed: {done.stdout.strip().splitlines()[-1]}")
    for left in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(root / left)
    docker.images.append(tag)
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        docker.run("import", "-", tag, stdin=tar.stdout)
    shutil.rmtree(root)

"""The Dockerfile and the compose files promise the same as the program and the recipes. No engine is needed."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.address import KEY_VARIABLE, URL_VARIABLE
from service.settings import PREFIX, SECRETS, SECTIONS, Settings
from trainer.plan.make import make_plan
from trainer.queue.server import URL_VARIABLE as QUEUE_VARIABLE
from trainer.recipe.file import load

ROOT = Path(__file__).parents[2]
CPU, GPU = ("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")
OURS = ("service", "coordinator", "worker-text", "worker-image", "worker-video", "worker")
LIBRARIES = {"HOME", "OMP_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR"}
"""Variables that are read by what the program is made of."""


def parsed(name: str) -> dict[str, Any]:
    """As Compose reads it where no variable is set."""
    text = (ROOT / name).read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def merged(*names: str) -> dict[str, dict[str, Any]]:
    """The services as Compose merges them, those of a profile left out."""
    services: dict[str, dict[str, Any]] = {}
    for name in names:
        for service, keys in parsed(name)["services"].items():
            before = services.setdefault(service, {})
            for key, value in keys.items():
                if isinstance(value, dict):
                    before[key] = before.get(key, {}) | value
                elif key in ("volumes", "tmpfs"):
                    before[key] = [*before.get(key, []), *value]
                else:
                    before[key] = value
    return {name: keys for name, keys in services.items() if "profiles" not in keys}


def words(service: dict[str, Any]) -> list[str]:
    return shlex.split(service["command"])


files = pytest.mark.parametrize("names", [CPU, GPU], ids=["cpu", "gpu"])


@files
def test_every_service_gives_up_what_it_does_not_need(names: tuple[str, ...]) -> None:
    for name, service in merged(*names).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["user"].split(":")[0] not in ("0", "root"), name
        assert "privileged" not in service, name
        assert "/tmp" in service["tmpfs"], name


@files
def test_only_the_services_port_is_published_on_the_hosts_own_address(names: tuple[str, ...]) -> None:
    ports = {name: service["ports"] for name, service in merged(*names).items() if "ports" in service}
    assert ports == {"service": ["127.0.0.1:8000:8000"]}
    networks = {name: service["networks"] for name, service in merged(*names).items()}
    assert networks.pop("redis") == ["queue"]
    assert parsed("compose.yaml")["networks"]["queue"]["internal"] is True


@files
def test_what_ends_well_stays_ended_and_what_is_killed_is_started_again(names: tuple[str, ...]) -> None:
    for name, service in merged(*names).items():
        assert service["restart"] == ("unless-stopped" if name in ("redis", "service") else "on-failure"), name


@files
def test_every_container_has_a_health_check_and_waits_for_what_it_asks(names: tuple[str, ...]) -> None:
    targets = dict(re.findall(r"^FROM base AS (\w+)\n((?:(?!FROM).*\n)*)", (ROOT / "Dockerfile").read_text(), re.M))
    assert set(targets) == {"service", "trainer"}
    assert all("HEALTHCHECK" in lines for lines in targets.values())
    for name, service in merged(*names).items():
        assert ("healthcheck" in service) == (name == "redis")  # the others have their image's
        awaited = {"redis": set(), "service": {"redis"}}.get(name, {"redis", "service"})
        assert service.get("depends_on", {}) == {key: {"condition": "service_healthy"} for key in awaited}


@files
def test_every_variable_is_read_by_the_program(names: tuple[str, ...]) -> None:
    settings = {name for model in (Settings, *SECTIONS.values()) for name in model.model_fields} - set(SECTIONS)
    of_the_service = {f"{PREFIX}{name.upper()}" for name in settings}
    assert {f"{PREFIX}{name.upper()}" for name in SECRETS} <= of_the_service
    of_the_others = {URL_VARIABLE, KEY_VARIABLE, QUEUE_VARIABLE}
    for name, service in merged(*names).items():
        known = of_the_service if name == "service" else of_the_others
        assert set(service.get("environment", {})) <= known | LIBRARIES, name
        if name in OURS:
            assert {QUEUE_VARIABLE, KEY_VARIABLE} <= set(service["environment"]), name
            assert name == "service" or service["environment"][URL_VARIABLE] == "http://service:8000"


@files
def test_service_and_coordinator_take_the_same_recipe_and_the_workers_its_branches(names: tuple[str, ...]) -> None:
    services = merged(*names)
    assert words(services["service"])[:2] == ["coevo", "serve"]
    assert words(services["coordinator"])[:2] == ["coevo", "coordinate"]
    (recipe,) = words(services["service"])[2:]
    assert words(services["coordinator"])[2:] == [recipe]
    branches = [start.branch for start in make_plan(load(ROOT / recipe)).starts]
    workers = [words(service) for name, service in services.items() if name.startswith("worker")]
    taken = [command[command.index("--branch") + 1] for command in workers]
    assert sorted(taken) == (["all"] if "worker" in services else sorted(branches))
    assert len({command[command.index("--name") + 1] for command in workers}) == len(workers)


def test_the_card_is_shared_as_the_recipe_says() -> None:
    services = merged(*GPU)
    recipe = load(ROOT / words(services["service"])[2])
    folder = f"/work/{recipe.base.name}"
    for name in ("service", "worker"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
        assert f"./{recipe.base.name}:{folder}:ro" in services[name]["volumes"]
        assert services[name]["build"]["args"]["DEVICE"] == "gpu"
    assert services["service"]["shm_size"] == "16g"
    assert recipe.engine.adapter_cache == "/dev/shm"
    assert "deploy" not in services["coordinator"]


def test_the_queue_keeps_what_it_is_told_and_drops_nothing() -> None:
    command = merged(*CPU)["redis"]["command"]
    settings = dict(zip(command[::2], command[1::2], strict=True))
    assert settings == {
        "--dir": "/data",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory-policy": "noeviction",
    }


def test_the_images_install_what_pyproject_names() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "# syntax" not in text.lower()
    extras = set(re.findall(r'"\.\[([\w$-]+)\]"', text))
    assert extras == {"trainer", "service-$DEVICE"}
    assert re.search(r"^gcc|\bgcc libc6-dev\b", text)
    assert not re.search(r"^(ENV|ARG) .*(KEY|TOKEN|PASSWORD|SECRET)", text, re.M)


def test_only_named_folders_go_into_the_build() -> None:
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    named = [line.removeprefix("!") for line in rest if line.startswith("!")]
    assert all((ROOT / name).exists() for name in named)
    assert not {".env", ".git", ".venv", "tests"} & set(named)


@files
@pytest.mark.parametrize("command", ["docker compose", "docker-compose"])
def test_compose_accepts_them(names: tuple[str, ...], command: str) -> None:
    compose = command.split()
    if shutil.which(compose[0]) is None or subprocess.run([*compose, "version"], capture_output=True).returncode:
        pytest.skip(f"no {command} here")
    given = [word for name in names for word in ("--file", name)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [*compose, *given, "config", "--quiet"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

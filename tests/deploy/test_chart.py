"""The chart promises the same as the programs, the recipes and compose. No cluster is needed."""

import argparse
import signal
import subprocess
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

from clients.address import KEY_VARIABLE, URL_VARIABLE
from service import command
from service.settings import PREFIX, SECTIONS, Settings
from tests.deploy.chart import CHART, ROOT, VALUES, objects, rendered, values_of
from trainer import worker
from trainer.commands import coordinate
from trainer.plan.make import make_plan
from trainer.queue.server import URL_VARIABLE as QUEUE_VARIABLE
from trainer.recipe import Recipe
from trainer.recipe.file import load

KUBERNETES = ("1.29", "1.37")
"""The oldest that Chart.yaml asks for, and the newest whose schemas are here."""
LIBRARIES = {"HF_TOKEN", "HOME", "OMP_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR"}
PODS = ("StatefulSet", "Deployment", "Job")

a_size = pytest.mark.parametrize("size", VALUES)


def pods(size: str, changes: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The pod of each part: queue, service, worker-..., coordinator."""
    workloads = [workload for (kind, _), workload in objects(rendered(size, changes)).items() if kind in PODS]
    templates = [workload["spec"]["template"] for workload in workloads]
    return {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["spec"] for pod in templates}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return only


def recipe_of(words: list[str]) -> Recipe:
    """What `coevo serve` or `coevo coordinate` makes of its words, by its own parser."""
    program, name, *rest = words
    parser = argparse.ArgumentParser()
    {"serve": command, "coordinate": coordinate}[name].add_arguments(parser)
    arguments = parser.parse_args(rest)
    assert program == "coevo"
    return load(ROOT / arguments.recipe, arguments.set)


def worker_words(pod: dict[str, Any]) -> tuple[int, argparse.Namespace]:
    """How many processes, and what each is started with, by the parsers of torchrun and of the worker."""
    first, *words = container(pod)["command"]
    if first == "torchrun":
        launch = get_args_parser().parse_args(words)
        assert launch.module
        assert launch.training_script == "trainer.worker"
        # It kills what has not ended by then, and the kubelet kills it.
        assert launch.shutdown_timeout == pod["terminationGracePeriodSeconds"]
        return int(launch.nproc_per_node), worker.parse(launch.training_script_args)
    assert [first, *words[:2]] == ["python", "-m", "trainer.worker"]
    return 1, worker.parse(words[2:])


@a_size
def test_helm_finds_nothing_to_complain_of(size: str) -> None:
    report = helm_python.lint(CHART, values_of(size), strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@a_size
@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid_and_has_no_unknown_field(size: str, version: str) -> None:
    documents = objects(rendered(size))
    assert {kind for kind, _ in documents} >= {"Service", "StatefulSet", "Deployment", "Job", "NetworkPolicy"}
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"queue": {"urlSecret": "my-queue"}, "apiKeySecret": "my-key", "hubTokenSecret": "my-hub"},
        {"files": {"mine.toml": 'extends = "miniature"\n'}, "recipe": "/etc/coevo/mine.toml"},
        {"networkPolicy": {"enabled": False}, "storageClass": "fast", "images": {"pullSecrets": ["registry"]}},
        {"gpu": {"runtimeClass": "nvidia", "tolerations": [{"operator": "Exists"}], "nodeSelector": {"card": "h100"}}},
    ],
)
def test_every_value_renders_valid_objects(changes: dict[str, Any]) -> None:
    for document in objects(rendered("gpu-8", changes)).values():
        kubernetes_validate.validate(document, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"service": {"gpu": 1}}, "gpu"),
        ({"workers": {"text": {"processes": 0}}}, "processes"),
        ({"recipe": "miniature"}, "recipe"),
        ({"base": {"claim": "bases"}}, "base.folder: set it to what the recipe says as base.name"),
    ],
)
def test_a_mistaken_value_is_refused_by_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(helm_python.HelmError, match=message):
        rendered("cpu", changes)


@a_size
def test_service_and_coordinator_take_one_recipe_and_workers_its_branches(size: str) -> None:
    parts = pods(size)
    recipe = recipe_of(container(parts["service"])["command"])
    assert recipe_of(container(parts["coordinator"])["args"]) == recipe
    branches = [start.branch for start in make_plan(recipe).starts]
    workers = {name: worker_words(pod)[1] for name, pod in parts.items() if name.startswith("worker-")}
    taken = [branch for arguments in workers.values() for branch in arguments.branch]
    assert sorted(taken) == (sorted(branches) if size == "cpu" else ["all"])
    assert sorted(arguments.name for arguments in workers.values()) == sorted(
        name.removeprefix("worker-") for name in workers
    )


@a_size
def test_every_variable_is_read_by_the_program(size: str) -> None:
    settings = {name for model in (Settings, *SECTIONS.values()) for name in model.model_fields} - set(SECTIONS)
    of_the_service = {f"{PREFIX}{name.upper()}" for name in settings}
    parts = pods(size, {"apiKeySecret": "keys", "hubTokenSecret": "hub"})
    for name in parts.keys() - {"queue"}:
        variables = {variable["name"]: variable for variable in container(parts[name])["env"]}
        known = of_the_service if name == "service" else {URL_VARIABLE, KEY_VARIABLE, QUEUE_VARIABLE}
        assert set(variables) <= known | LIBRARIES, name
        assert variables[QUEUE_VARIABLE]["value"] == "redis://coevo-queue:6379/0"
        assert variables[KEY_VARIABLE]["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "api-key"}
        assert variables["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
        if name != "service":
            assert variables[URL_VARIABLE]["value"] == f"http://coevo-service:{Settings().port}"


def test_a_queue_of_ones_own_comes_from_its_secret_alone() -> None:
    text = rendered("cpu", {"queue": {"urlSecret": "my-queue"}})
    assert "redis://" not in text
    assert not [name for kind, name in objects(text) if name == "coevo-queue"]
    for pod in pods("cpu", {"queue": {"urlSecret": "my-queue"}}).values():
        (variable,) = (variable for variable in container(pod)["env"] if variable["name"] == QUEUE_VARIABLE)
        assert variable["valueFrom"]["secretKeyRef"] == {"name": "my-queue", "key": "url"}


@a_size
def test_no_secret_is_made_and_no_link_of_a_service_becomes_a_setting(size: str) -> None:
    assert not [name for kind, name in objects(rendered(size)) if kind == "Secret"]
    # A Service called coevo would set COEVO_PORT=tcp://..., which the service reads as its port.
    assert all(pod["enableServiceLinks"] is False for pod in pods(size).values())


@a_size
def test_every_pod_gives_up_what_it_does_not_need(size: str) -> None:
    for name, pod in pods(size).items():
        security = container(pod)["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"], name
        assert not security["allowPrivilegeEscalation"], name
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["automountServiceAccountToken"] is False, name
        assert {"mountPath": "/tmp", "name": "tmp"} in container(pod)["volumeMounts"], name
        assert set(container(pod)["resources"]) == {"requests", "limits"}, name
        assert {mount["name"] for mount in container(pod)["volumeMounts"]} <= {
            *(volume["name"] for volume in pod["volumes"]),
            *("store", "runs", "queue"),
        }, name


@a_size
def test_probes_ask_what_the_service_answers(size: str) -> None:
    parts, routes = pods(size), (ROOT / "service/routes/health.py").read_text()
    service = container(parts["service"])
    assert f'@router.get("{service["livenessProbe"]["httpGet"]["path"]}")' in routes
    (port,) = service["ports"]
    assert (port["name"], port["containerPort"]) == (
        service["livenessProbe"]["httpGet"]["port"],
        Settings().port,
    )
    for probe in ("startupProbe", "readinessProbe"):
        program, script = service[probe]["exec"]["command"]
        assert program == "python"
        assert f"COPY containers/ready.py {script}\n" in (ROOT / "Dockerfile").read_text()
    for name in parts:
        if name.startswith("worker-"):
            assert container(parts[name])["readinessProbe"]["exec"]["command"] == ["coevo", "jobs"]


@a_size
def test_cards_are_those_that_recipe_and_torchrun_use(size: str) -> None:
    parts = pods(size)
    engine = recipe_of(container(parts["service"])["command"]).engine
    cards = {
        name: sum(int(n) for key, n in container(pod)["resources"]["limits"].items() if key.startswith("nvidia.com/"))
        for name, pod in parts.items()
    }
    assert cards["service"] == (0 if size == "cpu" else engine.data_parallel * engine.tensor_parallel)
    for name, pod in parts.items():
        if name.startswith("worker-"):
            processes, _ = worker_words(pod)
            assert cards[name] == (0 if size == "cpu" else processes)
    assert sum(cards.values()) == {"cpu": 0, "gpu-1": 2, "gpu-8": 8}[size]  # of one card two slices
    assert cards["queue"] == cards["coordinator"] == 0


@a_size
def test_the_base_is_mounted_where_the_recipe_looks_for_it(size: str) -> None:
    parts = pods(size)
    recipe = recipe_of(container(parts["service"])["command"])
    for name in parts.keys() - {"queue"}:
        mounted = {mount["mountPath"] for mount in container(parts[name])["volumeMounts"]}
        assert (f"/work/{recipe.base.name}" in mounted) == (size != "cpu"), name
        assert "/work/data" in mounted or size == "cpu", name
    mounts = {mount["mountPath"]: mount["name"] for mount in container(parts["service"])["volumeMounts"]}
    assert (mounts["/work/store"], mounts["/work/runs"]) == ("store", "runs")
    assert recipe.engine.adapter_cache in mounts


def test_the_queue_takes_the_options_of_compose() -> None:
    options = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["redis"]["command"]
    assert container(pods("cpu")["queue"])["args"] == options


def test_a_recipe_of_ones_own_comes_as_a_file() -> None:
    changes = {"files": {"mine.toml": 'extends = "miniature"\n'}, "recipe": "/etc/coevo/mine.toml"}
    documents = objects(rendered("cpu", changes))
    assert documents["ConfigMap", "coevo-files"]["data"] == changes["files"]
    parts = pods("cpu", changes)
    for name in ("service", "coordinator"):
        assert "/etc/coevo" in {mount["mountPath"] for mount in container(parts[name])["volumeMounts"]}


def test_another_recipe_is_another_job() -> None:
    names = [
        name
        for changes in ({}, {"set": ["seed=1"]}, {"set": ["seed=2"]}, {})
        for kind, name in objects(rendered("cpu", changes))
        if kind == "Job"
    ]
    assert names[0] == names[-1]
    assert len(set(names)) == 3


def test_a_coordinator_that_is_told_to_stop_does_not_end_the_job() -> None:
    """The shell around it sees to that: 0 would be the run's end, and 2 a mistake that no start mends."""
    shell = container(pods("cpu")["coordinator"])["command"]
    assert subprocess.run([*shell, "sh", "-c", "exit 2"], check=False).returncode == 2
    assert subprocess.run([*shell, "true"], check=False).returncode == 0
    with subprocess.Popen([*shell, "sh", "-c", "echo here; exec sleep 60"], stdout=subprocess.PIPE) as stopped:
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == b"here\n"
        (child,) = subprocess.run(
            ["ps", "--ppid", str(stopped.pid), "-o", "pid="], capture_output=True, text=True, check=True
        ).stdout.split()
        stopped.terminate()
        assert stopped.wait() == -signal.SIGTERM
    subprocess.run(["kill", child], check=True)  # in a container the kernel ends it


# ---- who reaches whom ----


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    excluded = [rule for rule in selector.get("matchExpressions", []) if labels.get(rule["key"]) in rule["values"]]
    assert all(rule["operator"] == "NotIn" for rule in selector.get("matchExpressions", []))
    return not excluded and selector.get("matchLabels", {}).items() <= labels.items()


def reaches(policies: list[dict[str, Any]], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether policies let a connection through: at its source and at its target, each as far as any selects it."""
    for pod, peer, direction, key in ((source, target, "Egress", "to"), (target, source, "Ingress", "from")):
        rules = [
            policy.get(direction.lower(), [])
            for policy in policies
            if direction in policy["policyTypes"] and selects(policy["podSelector"], pod)
        ]
        if rules and not any(
            any(allowed["port"] == port for allowed in rule.get("ports", [{"port": port}]))
            and any(selects(end.get("podSelector", {"matchLabels": {"no": "pod"}}), peer) for end in rule[key])
            for of_policy in rules
            for rule in of_policy
            if key in rule
        ):
            return False
    return True


@a_size
def test_only_pods_of_the_release_reach_the_queue_and_nobody_a_worker(size: str) -> None:
    documents = objects(rendered(size))
    policies = [policy["spec"] for (kind, _), policy in documents.items() if kind == "NetworkPolicy"]
    labels = {
        part["app.kubernetes.io/component"]: part
        for (kind, _), workload in documents.items()
        if kind in PODS
        for part in [workload["spec"]["template"]["metadata"]["labels"]]
    }
    stranger = {"app.kubernetes.io/name": "coevo", "app.kubernetes.io/instance": "another"}
    first_worker = next(name for name in labels if name.startswith("worker-"))
    for name in ("service", "coordinator", first_worker):
        assert reaches(policies, labels[name], labels["queue"], 6379), name
        assert not reaches(policies, labels["queue"], labels[name], 6379), name
    for name in ("coordinator", first_worker):
        assert reaches(policies, labels[name], labels["service"], 8000), name
        assert not reaches(policies, labels["service"], labels[name], 8000), name
    assert not reaches(policies, stranger, labels["queue"], 6379)
    assert not reaches(policies, stranger, labels["service"], 8000)

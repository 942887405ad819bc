"""The chart as Helm itself renders it, and the whole of `deploy/kustomize/base`:

python -m tests.deploy.chart > deploy/kustomize/base/coevo.yaml
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/coevo"
VALUES: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "gpu-1": ("values-gpu-1.yaml",),
    "gpu-8": ("values-gpu-1.yaml", "values-gpu-8.yaml"),
}
"""The files that each size of cluster takes, on top of values.yaml."""


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm lays one file of values over another."""
    values = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = merged(values[key], value) if both else value
    return values


def values_of(size: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in VALUES[size]:
        values = merged(values, yaml.safe_load((CHART / name).read_text()))
    return merged(values, changes or {})


def rendered(size: str, changes: Mapping[str, Any] | None = None) -> str:
    """All manifests as one text, like that of `helm template coevo deploy/helm/coevo`."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values_of(size, changes), name="coevo", namespace="default")
    texts = (text.strip().removeprefix("---\n") for name, text in sorted(files.items()) if name.endswith(".yaml"))
    return "\n---\n".join(filter(None, texts)) + "\n"


def objects(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The documents by kind and name."""
    parsed = [document for document in yaml.safe_load_all(text) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in parsed}


if __name__ == "__main__":
    print(rendered("cpu"), end="")

"""Grafana's dashboard and Prometheus' alerts name what the service counts."""

import json
import re
from pathlib import Path

import yaml

from service.http.admission import Admission
from service.http.metrics import Metrics

FOLDER = Path(__file__).parents[3] / "docs/grafana"
NAME = re.compile(r"\bcoevo_\w+")


def counted() -> set[str]:
    metrics = Metrics()
    metrics.watch(Admission(max_requests=1, max_tokens=1, max_waiting=1, max_wait_s=1))
    metrics.watch_queue(lambda: True)
    families = list(metrics.registry.collect())
    return {f"{family.name}{end}" for family in families for end in ("", "_total", "_bucket")}


def test_every_panel_asks_for_what_is_counted() -> None:
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    names = {name for panel in panels for target in panel["targets"] for name in NAME.findall(target["expr"])}
    assert len(names) > 8
    assert names <= counted()


def test_every_alert_watches_what_is_counted_and_says_what_to_do() -> None:
    rules = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
    names = {name for rule in rules for name in NAME.findall(rule["expr"])}
    assert len(names) > 4
    assert names <= counted()
    assert all(rule["annotations"]["description"] for rule in rules)

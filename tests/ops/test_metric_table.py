"""The table of metrics: what is made of it, and what names them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.ops.scraping import Page
from vuproc.handover.device_words import DEVICE_WORDS, DeviceSnapshot
from vuproc.ops.exposition import pieces
from vuproc.ops.metric_table import (
    METRICS,
    PREFIX,
    STATES,
    DeviceLook,
    FileSize,
    QueueLook,
    metrics_markdown,
)
from vuproc.shm.counter_table import WORDS, CountersSnapshot

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "vuproc.rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "vuproc.json"
NAME = re.compile(rf"\b{PREFIX}\w+")
HOSTILE = 'a"b\\c\nd{}'


def look(queue: int, state: str = "running", first: int = 1) -> QueueLook:
    numbers = range(first, first + len(WORDS))
    counters = CountersSnapshot._make([*numbers, tuple(range(32))])
    return QueueLook(queue, counters, state, in_flight=3, oldest_s=0.25)


def device(name: str = "disk") -> DeviceLook:
    words = DeviceSnapshot(*range(1, 1 + len(DEVICE_WORDS)))
    files = (FileSize("image", 4096, 512),)
    return DeviceLook(name, "blk", "1.2", 1.7e9, True, words, files)


def page(name: str = "disk", queues: int = 3) -> Page:
    looks = iter([look(queue, first=100 * queue) for queue in range(queues)])
    return Page("".join(pieces(lambda: device(name), looks)))


def test_each_word_that_names_a_metric_is_a_sample_with_its_value() -> None:
    seen, queue = page(), look(2, first=200)
    for name, word in WORDS.items():
        if not word.metric:
            continue
        labels = {"queue": 2} | ({"kind": word.kind} if word.kind else {})
        sample = f"{PREFIX}{word.metric}{'_total' if word.counter else ''}"
        value = getattr(queue.counters, name) * word.scale
        assert seen.value(sample, **labels) == pytest.approx(value)
    for name, word in DEVICE_WORDS.items():
        labels = {"result": word.kind} if word.kind else {}
        value = getattr(device().counters, name)
        assert seen.value(f"{PREFIX}{word.metric}_total", **labels) == value


def test_buckets_add_up_and_say_seconds() -> None:
    seen = page()
    bucket = "vuproc_request_duration_seconds_bucket"
    assert seen.value(bucket, queue=0, le="2e-09") == 0
    assert seen.value(bucket, queue=0, le="1.024e-06") == sum(range(10))
    assert seen.value(bucket, queue=0, le="+Inf") == sum(range(32))
    assert seen.value("vuproc_request_duration_seconds_count", queue=0) == sum(range(32))


@pytest.mark.parametrize("state", STATES)
def test_a_queue_is_in_one_state(state: str) -> None:
    text = "".join(pieces(device, iter([look(0, state)])))
    seen = Page(text)
    assert seen.value("vuproc_queue_state") == 1
    assert seen.value("vuproc_queue_state", vuproc_queue_state=state) == 1


def test_a_device_whose_name_is_odd_is_quoted() -> None:
    assert page(HOSTILE).value("vuproc_requests_total", device=HOSTILE, queue=0) == 0


def test_names_are_as_is_usual() -> None:
    for metric in METRICS:
        assert re.fullmatch(rf"{PREFIX}[a-z]+(_[a-z]+)*", metric.name), metric.name
        assert not metric.name.endswith("_total")
        assert "nanoseconds" not in metric.name and "_ms" not in metric.name
        assert metric.help and not metric.help.endswith(".")


def test_the_manual_has_them() -> None:
    assert metrics_markdown() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


# What names them.


def samples() -> set[str]:
    return {name for metric in METRICS for name in metric.samples}


def labels() -> set[str]:
    return {"device"} | {label for metric in METRICS for label in metric.labels}


def expressions_of_rules() -> Iterator[str]:
    for group in YAML(typ="safe").load(RULES)["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def expressions_of_dashboard() -> Iterator[str]:
    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("expr", "query", "definition") and isinstance(value, str):
                    yield value
                else:
                    yield from walk(value)
        elif isinstance(node, list):
            for each in node:
                yield from walk(each)

    yield from walk(json.loads(DASHBOARD.read_text(encoding="utf-8")))


@pytest.mark.parametrize("source", [expressions_of_rules, expressions_of_dashboard])
def test_each_metric_that_is_named_exists(source: Any) -> None:
    expressions = list(source())
    named = {name for expression in expressions for name in NAME.findall(expression)}
    assert len(named) > 5
    assert named - samples() - labels() == set()


@pytest.mark.parametrize("source", [expressions_of_rules, expressions_of_dashboard])
def test_each_label_that_is_named_exists(source: Any) -> None:
    for expression in source():
        named = re.findall(r"by \(([^)]*)\)", expression)
        named += [m for inside in re.findall(r"\{([^}]*)\}", expression) for m in _keys(inside)]
        flat = {name.strip() for group in named for name in group.split(",")}
        assert flat <= labels(), expression


def _keys(inside: str) -> list[str]:
    return re.findall(r"(\w+)\s*(?:=|!)", inside)


def test_the_dashboard_shows_what_a_device_counts() -> None:
    """All but what is told elsewhere: totals of events, connections and reloads."""
    shown = {n for expression in expressions_of_dashboard() for n in NAME.findall(expression)}
    elsewhere = {"events", "frontend_connections", "frontend_forced_disconnects", "reloads"}
    missing = {
        metric.name
        for metric in METRICS
        if not shown & set(metric.samples) and metric.name.removeprefix(PREFIX) not in elsewhere
    }
    assert missing == set()


def test_the_rules_are_rules() -> None:
    """By Prometheus' own check, too, where that is at hand (Debian: prometheus)."""
    (group,) = YAML(typ="safe").load(RULES)["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names))
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
    promtool = shutil.which("promtool")
    if promtool is not None:
        command = [promtool, "check", "rules", str(RULES)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

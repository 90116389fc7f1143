"""A scrape, parsed by Prometheus' own parser."""

from __future__ import annotations

import socket
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families

BOUND_S = 20.0
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def scrape(place: Path | int) -> str:
    """The text that is had by a Unix socket, or at a port of 127.0.0.1."""
    family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(BOUND_S)
        sock.connect(("127.0.0.1", place) if isinstance(place, int) else str(place))
        sock.sendall(GET)
        answer = b""
        while more := sock.recv(65536):
            answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK"), head
    return body.decode()


class Page:
    """The values of a page by name and labels; parsing raises for what OpenMetrics forbids."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        self.families = {family.name: family for family in families}
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: object) -> float:
        """The sum of the samples of that name which have these labels; there is one at least."""
        wanted = {(key, str(value)) for key, value in labels.items()}
        found = [v for (n, have), v in self.samples.items() if n == name and wanted <= have]
        assert found, (name, labels)
        return sum(found)

    def counters(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """What must never go back."""
        ends = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.samples.items() if key[0].endswith(ends)}


def went_back(before: Page, after: Page) -> list[str]:
    """The counters of which the later page has less, or nothing."""
    return [
        f"{name}{dict(labels)}: {value} -> {after.samples.get((name, labels))}"
        for (name, labels), value in before.counters().items()
        if after.samples.get((name, labels), -1) < value
    ]

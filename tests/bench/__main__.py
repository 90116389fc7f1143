"""vuproc and its peers in turn on the same disks: `python -m tests.bench`. See docs/bench.md."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.bench import bars, flame, ours, peers, plot, record, text
from tests.bench.backends import Backend, Missing
from tests.bench.clients import Client
from tests.bench.clients.builtin import Builtin
from tests.bench.clients.compiled import Blkio, Nbd, build
from tests.bench.clients.fio import Fio, program
from tests.bench.contenders import LIMIT, Contender, open_contender, open_limit
from tests.bench.findings import Finding
from tests.bench.images import Images
from tests.bench.json_text import as_text
from tests.bench.options import WAITS, parser
from tests.bench.rounds import Effort, Entry, compare
from tests.bench.work import WORKS, Case, Store
from vuproc.testing.vms import clients
from vuproc.testing.vms.errors import ClientMissing


class Bench:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, images: Images) -> None:
        self._options = options
        self._images = images
        self._effort = Effort(
            options.rounds,
            options.seconds,
            options.count,
            options.tries,
            time.monotonic() + options.patience,
        )
        self._clients = [client(name) for name in options.clients or [first_client()]]
        engines = options.engine or (bars.ENGINES if options.bars else ours.engines())
        self._ours: list[Backend] = [ours.Vuproc(name, dict(options.set)) for name in engines]
        self._profile = None if options.perf is None else flame.profiler(options.perf)
        self._peers = [peer for peer in peers.every() if _chosen(peer.name, options.peers)]

    def run(self) -> Iterator[Finding]:
        """Every comparison that was asked for."""
        for client in self._clients:
            for case in bars.CASES if self._options.bars else _cases(self._options):
                case = replace(case, span=self._options.span)
                if problem := self._images.problem(case.store):
                    _say(f"left out: {problem}")
                    continue
                yield self._compare(case, client)
            if self._options.bars:
                yield self._scaling(client)

    def _compare(self, case: Case, client: Client) -> Finding:
        entries: list[Entry[Contender]] = [
            Entry(f"limit: {how}", open_limit(how, case, self._images))
            for how in self._options.limits
        ]
        entries += [self._entry(side, case, client) for side in [*self._ours, *self._peers]]
        return self._compared(case.name, case.title, client, entries)

    def _scaling(self, client: Client) -> Finding:
        """The work for a CPU on one queue and on two, side by side."""
        case = replace(bars.CHECKSUM, span=self._options.span)
        both = (replace(case, queues=1), bars.ONE), (replace(case, queues=2), bars.TWO)
        entries = [
            Entry(LIMIT + label, open_limit("call", each, self._images, label))
            for each, label in both
        ]
        entries += [
            self._entry(side, each, client, label)
            for side in [*self._ours, *self._peers]
            for each, label in both
            if side.name in (f"vuproc {ours.VERBS}", "rust preadv")
        ]
        title = f"{case.work.title}, {case.store.value}, depth {case.depth}, one queue and two"
        return self._compared(bars.SCALING, title, client, entries)

    def _compared(
        self, name: str, title: str, client: Client, entries: list[Entry[Contender]]
    ) -> Finding:
        return compare(name, title, client.name, entries, self._effort, _say, self._profile)

    def _entry(
        self, side: Backend, case: Case, client: Client, label: str = ""
    ) -> Entry[Contender]:
        # NBD has a client of its own, whatever drives the virtqueues.
        fitting: Client = client if side.protocol in client.protocols else Nbd()
        opened = open_contender(side, fitting, case, self._images, label)
        return Entry(side.name + label, opened)


def client(name: str) -> Client:
    """The client of that name."""
    kinds: dict[str, Callable[[], Client]] = {"libblkio": Blkio, "fio": Fio, "builtin": Builtin}
    return kinds[name]()


def first_client() -> str:
    """libblkio where it is, and a compiler for its driver; else the one that is always there."""
    try:
        clients.libblkio()
        build("blkio")
    except (ClientMissing, Missing):
        return Builtin.name
    return Blkio.name


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    chosen = options.works, options.stores, options.queues, options.depths, options.waits
    for work, store, queues, depth, wait in itertools.product(*chosen):
        yield Case(WORKS[work], Store(store), depth, queues, polls=wait == WAITS[1])


def _chosen(name: str, wanted: Sequence[str] | None) -> bool:
    return wanted is None or any(name.startswith(each) for each in wanted)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _list() -> None:
    """What is here of clients and back-ends; building what has to be built."""
    checks: dict[str, Callable[[], object]] = {
        "client libblkio": lambda: (clients.libblkio(), build("blkio")),
        "client fio": program,
        "client builtin": lambda: None,
        "client nbd": lambda: build("nbd"),
        "limit": lambda: build("limit"),
    }
    plain = Case(WORKS["randread"])
    for backend in [*(ours.Vuproc(name, {}) for name in ours.ENGINES), *peers.every()]:
        case = replace(plain, store=Store.DIRECT) if "native" in backend.name else plain
        checks[backend.name] = lambda backend=backend, case=case: backend.check(case)  # type: ignore[misc]
    for name, check in checks.items():
        try:
            check()
            print(f"  {name:32} here")
        except (Missing, ClientMissing) as missing:
            print(f"  {name:32} missing: {missing}")


def _machine() -> dict[str, Any]:
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


@dataclass(frozen=True, slots=True)
class Found:
    """What a run found. `judged` is empty unless `--bars` was asked for."""

    machine: dict[str, Any]
    findings: list[Finding]
    judged: list[bars.Verdict]


def measured(options: argparse.Namespace) -> Found:
    """Measure, and print meanwhile. Raises Missing."""
    machine = _machine()
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items())
    print(f"{about}\n{text.EXPLANATION}")
    findings = []
    with Images(options.tmpfs, options.directory, options.span) as images:
        for finding in Bench(options, images).run():
            findings.append(finding)
            print("\n".join(text.lines(finding)), flush=True)
    judged = []
    if options.bars:
        judged = bars.verdicts({finding.name: finding for finding in findings})
        print("\n".join(["", *(verdict.line() for verdict in judged)]))
    if options.json:
        data = {
            "machine": machine,
            "options": {key: str(value) for key, value in vars(options).items()},
            "comparisons": [finding.as_data() for finding in findings],
            "bars": [verdict.as_data() for verdict in judged],
        }
        options.json.write_text(as_text(data) + "\n", encoding="utf-8")
    if options.plot:
        plot.draw(findings, options.plot)
    return Found(machine, findings, judged)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = parser().parse_args(arguments)
    if options.list:
        _list()
        return 0
    try:
        measured(options)
    except Missing as missing:
        _say(str(missing))
        return 1
    if options.bars:
        print("\nThe in-flight record, at most 5 % at depth 32:")
        record.main(["--depth", "32"])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The bars that vuproc is to clear, each a ratio within one comparison of the preset `--bars`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.contenders import Taken
from tests.bench.findings import Finding, Row
from tests.bench.ours import BATCH, PYTHON, VERBS
from tests.bench.work import WORKS, Case, Store

NATIVE, CALLS = "auto", "sync"
"""What suits an image best, which for one in tmpfs is a mapping; and system calls all the same."""
READ = Case(WORKS["randread"])
WRITE = Case(WORKS["randwrite"])
TWO_QUEUES = Case(WORKS["randread"], queues=2)
DIRECT = Case(WORKS["randread"], store=Store.DIRECT)
ONE_SLEEPS = Case(WORKS["randread"], depth=1)
ONE_POLLS = Case(WORKS["randread"], depth=1, polls=True)
CHECKSUM = Case(WORKS["checksum"], depth=32)
SCALING = "scaling"
"""The comparison of CHECKSUM with two queues and with one, all in turn."""
SLEEPERS = "rust preadv", "storage-daemon threads-nopoll", "storage-daemon io_uring-nopoll"
SPINNERS = "storage-daemon threads", "storage-daemon io_uring"
"""Peers which sleep at once when they have nothing to do, and those which look on for a while."""
ENGINES = NATIVE, f"{NATIVE}:poll=off", CALLS, PYTHON, VERBS, BATCH
"""What `--bars` measures of ours unless it is told."""
ONE, TWO = ", 1 queue", ", 2 queues"

CASES = READ, WRITE, TWO_QUEUES, DIRECT, ONE_SLEEPS, ONE_POLLS


@dataclass(frozen=True, slots=True)
class Bar:
    """`ours` is to be at least `least` times the best of `theirs`: names of sides or families. In
    requests a second, or in those that a second of the device's CPU time is enough for.
    """

    text: str
    finding: str
    ours: str
    theirs: tuple[str, ...]
    least: float
    of_cpu: bool = False


def _work(case: Case, what: str, call: str) -> list[Bar]:
    native, calls, python, name = (
        *(f"vuproc {each}" for each in (NATIVE, CALLS, PYTHON)),
        case.name,
    )
    batch = f"vuproc {BATCH}"
    return [
        Bar(f"mapped {what}, of memcpy alone", name, native, ("limit: memcpy",), 0.75),
        Bar(f"mapped {what}, the mapped peer in Rust", name, native, ("rust map",), 1.25),
        Bar(f"{what} by calls, of the calls alone", name, calls, (f"limit: {call}",), 0.8),
        Bar(f"{what} by calls, storage daemon's best", name, calls, ("storage-daemon",), 4.0),
        Bar(f"{what} by calls, the peer in Rust", name, calls, ("rust preadv",), 1.2),
        Bar(f"Python {what}, storage daemon's best", name, python, ("storage-daemon",), 2.0),
        Bar(f"Python {what}, nbdkit's Python plugin", name, python, ("nbdkit python",), 10.0),
        Bar(f"Python {what} by the batch, of native calls", name, batch, (calls,), 0.9),
        Bar(
            f"Python {what} by the batch, storage daemon's best",
            name,
            batch,
            ("storage-daemon",),
            4.0,
        ),
    ]


BARS = [
    *_work(READ, "random read", "preadv"),
    *_work(WRITE, "random write", "pwritev"),
    Bar(
        "2 queues by calls, the peer in Rust",
        TWO_QUEUES.name,
        f"vuproc {CALLS}",
        ("rust preadv",),
        1.0,
    ),
    Bar(
        "2 queues mapped, the mapped peer in Rust",
        TWO_QUEUES.name,
        f"vuproc {NATIVE}",
        ("rust map",),
        1.1,
    ),
    Bar("checksum, 2 queues of 1", SCALING, f"vuproc {VERBS}{TWO}", (f"vuproc {VERBS}{ONE}",), 1.9),
    Bar("Python on O_DIRECT", DIRECT.name, f"vuproc {PYTHON}", (f"vuproc {NATIVE}",), 0.85),
    Bar("depth 1, both sleep", ONE_SLEEPS.name, f"vuproc {NATIVE} poll=off", SLEEPERS, 1.0),
    Bar(
        "depth 1, both sleep, the peer in Rust",
        ONE_SLEEPS.name,
        f"vuproc {NATIVE} poll=off",
        ("rust preadv",),
        1.15,
    ),
    Bar(
        "depth 1, both sleep, requests a CPU second, the peer in Rust",
        ONE_SLEEPS.name,
        f"vuproc {NATIVE} poll=off",
        ("rust preadv",),
        1.0,
        of_cpu=True,
    ),
    Bar(
        "depth 1, the driver sleeps, the peer in Rust",
        ONE_SLEEPS.name,
        f"vuproc {NATIVE}",
        ("rust preadv",),
        1.6,
    ),
    Bar("depth 1, both poll", ONE_POLLS.name, f"vuproc {NATIVE}", SPINNERS, 1.0),
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a bar. ratio None: it was not measured, `note` says why."""

    text: str
    least: float
    ratio: float | None
    note: str

    @property
    def met(self) -> bool:
        """It was measured, and is."""
        return self.ratio is not None and self.ratio >= self.least

    def line(self) -> str:
        if self.ratio is None:
            return f"{self.text}: not measured ({self.note})"
        said = "met" if self.met else "missed"
        return f"{self.text}: {self.ratio:.2f}, the bar is {self.least:g}: {said}{self.note}"

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def verdicts(findings: Mapping[str, Finding]) -> list[Verdict]:
    """Of all bars, by the names of the comparisons."""
    return [verdict(bar, findings.get(bar.finding)) for bar in BARS]


def judge(bars: Iterable[Bar], findings: Sequence[Finding]) -> bool:
    """Print a line a bar; whether all of them were measured, and met."""
    by_name = {finding.name: finding for finding in findings}
    judged = [verdict(bar, by_name.get(bar.finding)) for bar in bars]
    print("", *(each.line() for each in judged), sep="\n")
    return all(each.met for each in judged)


def verdict(bar: Bar, finding: Finding | None) -> Verdict:
    """Of one, by the comparison that it is of."""
    if finding is None:
        return Verdict(bar.text, bar.least, None, "not in this run")
    ours, theirs = finding.row(bar.ours), _best(bar.theirs, finding)
    for row, wanted in ((ours, bar.ours), (theirs, bar.theirs[0])):
        if row is None:
            return Verdict(bar.text, bar.least, None, finding.missing.get(wanted, f"no {wanted}"))
    assert ours is not None
    assert theirs is not None
    of = _per_cpu_second if bar.of_cpu else _per_second
    found = finding.ratio(ours, theirs, of=of)
    if found is None:
        return Verdict(bar.text, bar.least, None, "never in the same round")
    figures, undisturbed = found
    note = f" (least {figures.min:.2f}, most {figures.max:.2f}, against {theirs.name}"
    return Verdict(
        bar.text, bar.least, figures.median, note + (")" if undisturbed else "; always disturbed)")
    )


def _per_second(taken: Taken) -> float:
    return taken.rate


def _per_cpu_second(taken: Taken) -> float:
    # A short sample may be less than the clock of processes tells.
    return 1e9 / max(taken.cpu_ns, 1.0)


def _best(names: tuple[str, ...], finding: Finding) -> Row | None:
    rows = [finding.row(name) or finding.best(name) for name in names]
    return max(
        (row for row in rows if row is not None), key=lambda row: row.rate.median, default=None
    )

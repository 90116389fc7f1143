"""The verbs that look at a running device: stats, top, events, trace and autopsy."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from vuproc.cli import observe_text as text
from vuproc.cli.arguments import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from vuproc.ops.admin import Request
    from vuproc.ops.stats import Stats
    from vuproc.shm.trace_layout import Traced

FOLLOW_S = 0.25
"""Seconds between two looks for further events."""
AWAY_S = 60.0
"""Seconds for which a device may be away that is followed: its master is replaced."""
TOP_EVENTS = 8
"""Events that `top` shows."""
AUTOPSY_BEFORE = 5
"""Requests before a death that are shown beside those in flight."""
_NO_RICH = "vuproc: top needs rich: pip install 'vuproc[top]' (or rich by itself)"

Verb = Callable[[argparse.Namespace], int]


class Ask(Protocol):
    """What asks the running device."""

    def __call__(
        self, target: str, request: Request, *, patient_until: float = 0.0
    ) -> dict[str, Any]:
        """Ask that of a device file, or of a socket; ends the program if it refuses. Until
        `patient_until` (time.monotonic) it may be away.
        """


class Add(Protocol):
    """What adds to the command line."""

    def __call__(
        self, name: str, function: Verb, line: str, text: str, epilog: str
    ) -> argparse.ArgumentParser:
        """Add a verb, with what its help says."""


def add_verbs(add: Add, ask: Ask) -> None:
    """Add the verbs."""
    verb = add("stats", partial(stats, ask), "show numbers", text.STATS, text.STATS_EPILOG)
    _add_target(verb)
    verb.add_argument("--json", action="store_true", help="print everything, for programs")
    verb.add_argument("--interval", type=_seconds, metavar="S", help="print rates, every S seconds")
    verb.add_argument("--count", type=_count, metavar="N", help="N times, then end")

    verb = add("top", partial(top, ask), "watch rates and events", text.TOP, text.TOP_EPILOG)
    _add_target(verb)
    verb.add_argument("--interval", type=_seconds, metavar="S", default=1.0, help="default 1")
    verb.add_argument("--count", type=_count, metavar="N", help="N times, then end")

    verb = add("events", partial(events, ask), "show events", text.EVENTS, text.EVENTS_EPILOG)
    _add_target(verb)
    verb.add_argument("--follow", action="store_true", help="print further ones as they come")
    verb.add_argument("--after", type=int, metavar="N", default=0, help="those after number N")

    verb = add("trace", partial(trace, ask), "show last requests", text.TRACE, text.TRACE_EPILOG)
    _add_target(verb)
    verb.add_argument("--queue", type=int, metavar="N", default=0, help="of which queue; default 0")
    verb.add_argument("--json", action="store_true", help="print everything, for programs")

    line = "say what workers died of"
    verb = add("autopsy", partial(autopsy, ask), line, text.AUTOPSY, text.AUTOPSY_EPILOG)
    _add_target(verb)


def _add_target(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("target", metavar="FILE", help="the device file, or the socket")


# Numbers.


def stats(ask: Ask, options: argparse.Namespace) -> int:
    """`vuproc stats`: totals, or rates between looks."""
    import json

    from vuproc.cli.stats_table import rates_table, totals_table
    from vuproc.ops.stats import rates

    before = _stats(ask, options.target)
    if options.interval is None:
        print(json.dumps(_builtins(before), indent=2) if options.json else totals_table(before))
        return EXIT_OK
    for after in _looks(ask, options):
        found = rates(before, after)
        if options.json:
            print(json.dumps({"at": after.at, "queues": _builtins(found)}), flush=True)
        else:
            print(rates_table(found), flush=True)
        before = after
    return EXIT_OK


def top(ask: Ask, options: argparse.Namespace) -> int:
    """`vuproc top`: rates and events, live."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        print(_NO_RICH, file=sys.stderr)
        return EXIT_FAILED
    from vuproc.cli.top_view import view
    from vuproc.ops.stats import rates

    before = _stats(ask, options.target)
    recent = _events(ask, options.target, 0)["events"]
    with Live(
        view(before, [], recent[-TOP_EVENTS:]), console=Console(), auto_refresh=False
    ) as live:
        for after in _looks(ask, options):
            recent = _events(ask, options.target, 0)["events"]
            live.update(view(after, rates(before, after), recent[-TOP_EVENTS:]), refresh=True)
            before = after
    return EXIT_OK


def _looks(ask: Ask, options: argparse.Namespace) -> Iterator[Stats]:
    """The numbers after each interval, as often as is wanted; the device may be away meanwhile."""
    left = options.count
    next_at = time.monotonic()
    while left is None or left > 0:
        next_at = max(next_at + options.interval, time.monotonic())
        time.sleep(max(0.0, next_at - time.monotonic()))
        yield _stats(ask, options.target, time.monotonic() + AWAY_S)
        left = None if left is None else left - 1


def _stats(ask: Ask, target: str, patient_until: float = 0.0) -> Stats:
    import msgspec

    from vuproc.ops.admin import Request
    from vuproc.ops.stats import Stats

    return msgspec.convert(ask(target, Request("stats"), patient_until=patient_until), Stats)


def _builtins(value: object) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


# Events.


def events(ask: Ask, options: argparse.Namespace) -> int:
    """`vuproc events`: those that are kept, and with --follow further ones."""
    import json

    after, patient_until = options.after, 0.0
    while True:
        answer = _events(ask, options.target, after, patient_until)
        if answer["last"] < after:
            after = 0  # another device is served there now, whose events begin anew
            continue
        if answer["lost"] and after:
            print(json.dumps({"event": "events_lost", "lost": answer["lost"]}))
        for event in answer["events"]:
            print(json.dumps(event))
        sys.stdout.flush()
        if not options.follow:
            return EXIT_OK
        after = answer["last"]
        time.sleep(FOLLOW_S)
        patient_until = time.monotonic() + AWAY_S


def _events(ask: Ask, target: str, after: int, patient_until: float = 0.0) -> dict[str, Any]:
    from vuproc.ops.admin import Request

    return ask(target, Request("events", after=after), patient_until=patient_until)


# Requests.


def trace(ask: Ask, options: argparse.Namespace) -> int:
    """`vuproc trace`: the last requests of a queue."""
    import json

    from vuproc.ops.admin import Request

    answer = ask(options.target, Request("trace", queue=options.queue))
    if options.json:
        print(json.dumps(answer))
        return EXIT_OK
    requests, now = _traced(answer), answer["now"]
    print(f"{'before':>12} {'took':>10} {'head':>5} {'read':>9} {'write':>9}  request")
    for request in requests:
        print(_trace_line(answer["device"], request, answer["workers"], now))
    return EXIT_OK


def autopsy(ask: Ask, options: argparse.Namespace) -> int:
    """`vuproc autopsy`: what workers were doing when they died."""
    from vuproc.ops.admin import Request

    deaths = [
        event
        for event in _events(ask, options.target, 0)["events"]
        if event["event"] == "worker_died"
    ]
    if not deaths:
        print("no worker has died, as far as the events go back")
        return EXIT_OK
    queues: set[int] = set()
    for death in deaths:
        print(f"{death['time']} {death['text']}")
        for queue, head in death.get("serving", ()):
            print(f"  in the device's code: head {head} of queue {queue}")
        queues.update(death.get("queues", ()))
    if not _stats(ask, options.target).traced:
        print("requests are not traced: `trace: 64` below `device:`, and a reload, do it")
        return EXIT_OK
    for queue in sorted(queues):
        _show_last_moments(queue, ask(options.target, Request("trace", queue=queue)))
    return EXIT_OK


def _show_last_moments(queue: int, answer: dict[str, Any]) -> None:
    """Those of the last worker of a queue that has been replaced and had requests."""
    workers, now = answer["workers"], answer["now"]
    requests = [each for each in _traced(answer) if each.worker < workers]
    if not requests:
        print(f"queue {queue}: no request of a worker that ended is remembered")
        return
    dead = max(request.worker for request in requests)
    of_dead = [request for request in requests if request.worker == dead]
    open_ones = [request for request in of_dead if not request.ended]
    before = [request for request in of_dead if request.ended][-AUTOPSY_BEFORE:]
    print(f"queue {queue}: {len(open_ones)} in flight when worker {dead} of the queue ended")
    for request in sorted([*before, *open_ones]):
        print(_trace_line(answer["device"], request, workers, now))


def _traced(answer: dict[str, Any]) -> list[Traced]:
    from vuproc.shm.trace_layout import Traced

    return [
        Traced(**{**each, "first": bytes.fromhex(each["first"])}) for each in answer["requests"]
    ]


def _trace_line(device: str, request: Traced, workers: int, now: int) -> str:
    from vuproc.cli.stats_table import duration
    from vuproc.ops.request_words import described, outcome

    took = duration(request.ended - request.began) if request.ended else "-"
    again = ", once more" if request.again else ""
    what = described(device, request)
    return (
        f"{duration(now - request.began):>12} {took:>10} {request.head:>5} {request.readable:>9} "
        f"{request.writable:>9}  {what}{': ' if what else ''}{outcome(request, workers)}{again}"
    )


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{value!r} is no number of seconds from 0.05 to 86400")
    return seconds


def _count(value: str) -> int:
    if not value.isdecimal() or not int(value):
        raise argparse.ArgumentTypeError(f"{value!r} is no number from 1 on")
    return int(value)

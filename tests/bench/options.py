"""The options of `python -m tests.bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import ours
from tests.bench.work import MIB, WORKS, Store
from vuproc.testing.vms import clients

CLIENTS = "libblkio", "fio", "builtin"
LIMITS = "call", "copy"
WAITS = "sleep", "poll"
DEPTHS = 1, 4, 32, 128
QUEUES = 1, 2, 4


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Run vuproc and each peer that is found here in turn, and compare them.",
        epilog="Lists are separated by commas; `all` is everything. See docs/bench.md.",
    )
    add = found.add_argument
    add("--list", action="store_true", help="say what can be measured here, and end")
    add("--bars", action="store_true", help="just the comparisons that vuproc's bars need")
    add("--works", type=_choice(WORKS), default=["randread"], help="/".join(WORKS))
    stores = [store.value for store in Store]
    add("--stores", type=_choice(stores), default=["tmpfs"], help="/".join(stores))
    add("--depths", type=_choice(DEPTHS, int), default=[1, 32, 128], help="1/4/32/128")
    add("--queues", type=_choice(QUEUES, int), default=[1], help="1/2/4")
    add("--waits", type=_choice(WAITS), default=["sleep"], help="of the client: sleep/poll")
    add("--clients", type=_choice(CLIENTS), help=f"{'/'.join(CLIENTS)} (the first that is here)")
    add("--engine", type=_specs, help=f"{'/'.join(ours.ENGINES)}, with :KEY=VALUE of its own")
    add("--peers", type=_names, help="those whose name starts so; `none` (all)")
    add("--limits", type=_choice(LIMITS), default=list(LIMITS), help="call/copy")
    add("--set", type=_setting, action="append", default=[], help="KEY=VALUE of our devices")
    add("--rounds", type=int, default=7, help="samples of each side (7)")
    add("--seconds", type=float, default=0.3, help="length of a sample (0.3)")
    add("--count", type=int, help="requests of a sample on each queue, instead of --seconds")
    add("--tries", type=int, default=4, help="for an undisturbed sample (4)")
    add("--patience", type=float, default=600.0, help="seconds for repeats (600)")
    add("--span", type=_mebibytes, default=256 * MIB, help="MiB of an image (256)")
    add("--tmpfs", type=Path, default=Path("/dev/shm"), help="a tmpfs (/dev/shm)")
    add("--directory", type=Path, default=clients.cache() / "bench", help="on a real disk")
    add("--json", type=Path, help="write everything there")
    add("--perf", type=Path, help="write flame graphs of every side into this folder (needs perf)")
    add("--plot", type=Path, help="draw a PNG there (needs matplotlib)")
    return found


def _choice(known: Any, kind: Callable[[str], Any] = str) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        if text == "all":
            return list(known)
        chosen = [kind(each) for each in text.split(",")]
        if kind is str and (unknown := [each for each in chosen if each not in known]):
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return chosen

    return parse


def _names(text: str) -> list[str]:
    return [] if text == "none" else text.split(",")


def _specs(text: str) -> list[str]:
    chosen = list(ours.ENGINES) if text == "all" else text.split(",")
    for spec in chosen:
        engine, *settings = spec.split(":")
        if engine not in ours.ENGINES:
            raise argparse.ArgumentTypeError(f"{engine} is none of {', '.join(ours.ENGINES)}")
        for each in settings:
            _setting(each)
    return chosen


def _setting(text: str) -> tuple[str, Any]:
    try:
        return ours.setting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _mebibytes(text: str) -> int:
    return int(text) * MIB

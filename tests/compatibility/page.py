"""The text of docs/compatibility.md, from the tables of this folder and the tests' marks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.compatibility.front_ends import BUILT_IN, NAMES
from tests.compatibility.marks import Proof
from tests.compatibility.names import Item, Kind, of_kind
from tests.compatibility.ours import reason, when
from tests.compatibility.peers import NOT_CHECKED, PEERS

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
WIDTH = 100

HEADINGS = {
    Kind.FRONT_END: ("Messages from the front-end", "needs"),
    Kind.BACK_END: ("Messages to the front-end", "needs"),
    Kind.PROTOCOL: ("Protocol features", "offered"),
    Kind.RING: ("Feature bits of every device", "offered"),
}

INTRODUCTION = """\
# Compatibility

Each message and each bit of the vhost-user protocol: when vuproc offers it, with which front-ends a
test shows it at work, and why not where it is refused. Beside it what three other back-ends do.

This page is made by `python -m tests.compatibility` from the message table
(`vuproc/spec/vhost_user.py`), the marks of the tests and the tables in `tests/compatibility`. A
test fails when it is not what they say.

* **tested with** has the front-ends of which a test has the mark `proves`. With a real one the test
  fails unless the log of that very run has the message, answered and not refused, or the bit,
  acknowledged. "built-in" is the front-end of `vuproc.testing`.
* Names are those of the specification without VHOST_USER; messages to the front-end begin with
  BACKEND.
"""


def page(proofs: Sequence[Proof]) -> str:
    """The whole page."""
    peers = "; ".join(f"{peer.name} ({peer.version})" for peer in PEERS)
    others = _item(
        f'The other back-ends, read in their sources and not run: {peers}. What is "{NOT_CHECKED}"'
        " was not looked for."
    )
    return INTRODUCTION + "\n".join([*others, "", *_parts(proofs)]).rstrip() + "\n"


def _parts(proofs: Sequence[Proof]) -> Iterator[str]:
    for kind, (heading, column) in HEADINGS.items():
        yield f"## {heading}\n"
        yield from _table(of_kind(kind), column, proofs)
        yield ""
        refused = [item for item in of_kind(kind) if reason(item.name)]
        if refused:
            yield "Refused:\n"
            for item in refused:
                yield from _item(f"`{item.name}`: {reason(item.name)}.")
            yield ""
    yield "## Which test shows it\n"
    for front_end in NAMES:
        yield f"### {'Built-in' if front_end == BUILT_IN else front_end}\n"
        for proof in proofs:
            if proof.front_end == front_end:
                yield f"* `{proof.place}`:"
                names = ", ".join(f"`{name}`" for name in proof.names)
                yield from textwrap.wrap(
                    names,
                    WIDTH,
                    initial_indent="  ",
                    subsequent_indent="  ",
                    break_on_hyphens=False,
                )
        yield ""


def _table(items: Sequence[Item], column: str, proofs: Sequence[Proof]) -> Iterator[str]:
    peers = " | ".join(peer.name for peer in PEERS)
    yield f"| | name | {column} | tested with | {peers} |"
    yield "|--:|---|---|---|" + "---|" * len(PEERS)
    for item in items:
        ours = "refused" if reason(item.name) else when(item.name)
        words = " | ".join(peer.word(item.name) for peer in PEERS)
        yield f"| {item.number} | `{item.name}` | {ours} | {_tested(item, proofs)} | {words} |"


def _tested(item: Item, proofs: Sequence[Proof]) -> str:
    with_it = {proof.front_end for proof in proofs if item.name in proof.names}
    return ", ".join(name for name in NAMES if name in with_it)


def _item(text: str) -> list[str]:
    return textwrap.wrap(
        f"* {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )

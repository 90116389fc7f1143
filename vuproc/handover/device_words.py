"""The table of what the masters of a device count: one row a word. The metrics follow."""

# No `from __future__ import annotations`: the annotations are the table, and read at the import.

from typing import Annotated, NamedTuple, get_args

from vuproc.shm.counter_table import Word


class DeviceSnapshot(NamedTuple):
    """What the masters of a device have counted."""

    connections: Annotated[
        int, Word(0, "front-ends that have connected", metric="frontend_connections")
    ] = 0
    disconnects: Annotated[
        int,
        Word(
            1,
            "front-ends that were disconnected for what they did, or for us",
            metric="frontend_forced_disconnects",
        ),
    ] = 0
    takeovers: Annotated[
        int, Word(2, "masters that have gone on for another one", metric="master_takeovers")
    ] = 0
    reloads: Annotated[
        int, Word(3, "reloads that replaced every worker", metric="reloads", kind="ok")
    ] = 0
    failed_reloads: Annotated[
        int,
        Word(4, "reloads whose workers did not start", metric="reloads", kind="failed"),
    ] = 0
    events: Annotated[int, Word(5, "events so far", metric="events")] = 0


DEVICE_WORDS: dict[str, Word] = {
    name: get_args(kind)[1] for name, kind in DeviceSnapshot.__annotations__.items()
}
"""Each row by the name of its value."""

"""Many devices and many queues."""

from __future__ import annotations

from tests.systemd.inside.disks import ETC, device_file, driver, reads_and_writes, socket_of
from tests.systemd.inside.manager import BOUND_S, ctl, prop, texts, wait_state
from vuproc.testing.block import Block
from vuproc.testing.guest import Guest

COUNT = 24
QUEUES = 256


def step_many_services() -> None:
    """They end at once, and systemd takes in all that each has it forget."""
    names = [f"many{number}" for number in range(COUNT)]
    units = [f"vuproc@{name}.service" for name in names]
    paths = [device_file(name) for name in names]
    try:
        ctl("start", *units)
        for name in names[::8]:
            with driver(name) as guest:
                reads_and_writes(guest)
    finally:
        ctl("stop", *units)
        for path in paths:
            path.unlink()
    for unit in units:
        assert prop(unit, "Result") == "success" and prop(unit, "NFileDescriptorStore") == "0"
        assert not [line for line in texts(unit) if "service manager" in line], texts(unit)


def step_many_queues() -> None:
    """As many as a device may have: all is stored, gone on with over a restart, and forgotten."""
    name, unit = "wide", "vuproc@wide.service"
    path = device_file(name)
    path.write_text(path.read_text().replace("queues: 2", f"queues: {QUEUES}"))
    try:
        ctl("start", unit)
        with Guest(socket_of(name), queues=QUEUES, memory=64 << 20, timeout_s=BOUND_S) as guest:
            assert int(prop(unit, "NFileDescriptorStore")) > 3 * QUEUES
            ctl("restart", unit)
            block = Block(guest)
            for queue in range(0, QUEUES, 51):
                block.write(8 * queue, bytes([queue]) * 4096, queue=queue)
                assert block.read(8 * queue, 4096, queue=queue) == bytes([queue]) * 4096
    finally:
        ctl("stop", unit)
        path.unlink()
    wait_state(unit, "inactive")
    assert prop(unit, "NFileDescriptorStore") == "0"
    said = texts(unit)
    assert not [line for line in said if "service manager" in line], said
    assert len([line for line in said if "disconnected" in line]) == 1, said


def step_many_of_a_folder() -> None:
    """The parent takes in all that each device has it forget as they end."""
    for number in range(4 * COUNT):
        device_file(f"few{number}")
    unit = "vuproc.service"
    try:
        ctl("start", unit)
        assert len(list(ETC.glob("few*.yaml"))) == 4 * COUNT
        assert prop(unit, "StatusText").startswith(f"{4 * COUNT} "), prop(unit, "StatusText")
    finally:
        ctl("stop", unit)
        for path in ETC.glob("few*.yaml"):
            path.unlink()
    assert prop(unit, "Result") == "success"
    assert not [line for line in texts(unit) if "took no" in line], texts(unit)[-40:]

"""The control queue of the network device, and which frames and pairs its driver then has."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vuproc.devices.net_control import MOST_BYTES, CommandRefused, NetControl
from vuproc.devices.net_filter import BROADCAST, Filter
from vuproc.devices.net_state import MOST_ADDRESSES, NetState
from vuproc.spec.net import ANNOUNCE, CONFIG, CONTROL_ERR, CONTROL_OK, HEADER, Control, NetFeature
from vuproc.testing import Guest, Served, serve
from vuproc.testing.errors import NoCompletion

pytestmark = pytest.mark.timeout(120)

RX, CONTROL = 0, 2
ALL_FEATURES = (1 << 64) - 1
OURS, THEIRS = b"\x52\x54\0\0\0\1", b"\x52\x54\0\0\0\2"
GROUP, OTHER_GROUP = b"\1\0\x5e\0\0\1", b"\1\0\x5e\0\0\2"
MODES = {
    Control.RX_PROMISC: "promisc",
    Control.RX_ALLMULTI: "allmulti",
    Control.RX_ALLUNI: "alluni",
    Control.RX_NOMULTI: "nomulti",
    Control.RX_NOUNI: "nouni",
    Control.RX_NOBCAST: "nobcast",
}


def command(kind: Control, data: bytes = b"") -> bytes:
    return int(kind).to_bytes(2, "big") + data


def tables(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    data = b"".join(
        len(each).to_bytes(4, "little") + b"".join(each) for each in (unicast, multicast)
    )
    return command(Control.MAC_TABLE_SET, data)


def vlan(kind: Control, number: int) -> bytes:
    return command(kind, number.to_bytes(2, "little"))


def frame(to: bytes, tag: int | None = None, number: int = 0) -> bytes:
    inside = b"" if tag is None else b"\x81\0" + tag.to_bytes(2, "big")
    return to + THEIRS + inside + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(40)


# By itself.


def carried_out(*commands: bytes, features: int = ALL_FEATURES) -> NetState:
    state = NetState()
    for each in commands:
        NetControl(state, features, 4).carry_out(each)
    return state


def filter_of(*commands: bytes, features: int = ALL_FEATURES, mac: bytes | None = OURS) -> Filter:
    return Filter(carried_out(*commands, features=features).settings(), features, mac)


SELECTIVE = command(Control.RX_PROMISC, b"\0")


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (b"", "a command of 0 bytes"),
        (b"\0", "a command of 1 bytes"),
        (b"\0\6\1", "class 0 has no command 6"),
        (b"\7\0", "class 7 has no command 0"),
        (command(Control.RX_PROMISC), "RX_PROMISC with 0 bytes, not 1"),
        (command(Control.RX_PROMISC, b"\2"), "2 is neither on nor off"),
        (command(Control.RX_ALLMULTI, b"\1\0"), "RX_ALLMULTI with 2 bytes, not 1"),
        (command(Control.MAC_ADDR_SET, GROUP), "no address of a single interface"),
        (command(Control.MAC_ADDR_SET, bytes(6)), "no address of a single interface"),
        (command(Control.MAC_ADDR_SET, OURS[:5]), "with 5 bytes, not 6"),
        (command(Control.MAC_TABLE_SET, bytes(3)), "unicast addresses that is cut off"),
        (command(Control.MAC_TABLE_SET, bytes(7)), "multicast addresses that is cut off"),
        (command(Control.MAC_TABLE_SET, b"\xff" * 8), "4294967295 unicast addresses in 4 bytes"),
        (tables([], [])[:-4] + b"\1\0\0\0" + bytes(5), "1 multicast addresses in 5 bytes"),
        (tables([OURS], []) + b"x", "1 bytes behind the tables"),
        (vlan(Control.VLAN_ADD, 4096), "there is no VLAN 4096"),
        (command(Control.VLAN_DEL, b"\1"), "VLAN_DEL with 1 bytes, not 2"),
        (command(Control.ANNOUNCE_ACK, b"\0"), "ANNOUNCE_ACK with 1 bytes, not 0"),
        (command(Control.MQ_PAIRS_SET, b"\0\0"), "0 pairs are not 1 to 4"),
        (command(Control.MQ_PAIRS_SET, b"\5\0"), "5 pairs are not 1 to 4"),
        (command(Control.OFFLOADS_SET, bytes(7) + b"\1"), "offloads 0x100000000000000 are not"),
    ],
)
def test_c34_a_command_that_makes_no_sense_is_refused_and_changes_nothing(
    refused: bytes, reason: str
) -> None:
    state = carried_out(SELECTIVE, tables([THEIRS], [GROUP]))
    before = bytes(state)
    with pytest.raises(CommandRefused, match=reason):
        NetControl(state, ALL_FEATURES, 4).carry_out(refused)
    assert bytes(state) == before


@pytest.mark.parametrize("kind", list(Control))
def test_c34_a_command_needs_its_feature(kind: Control) -> None:
    with pytest.raises(CommandRefused, match="which is not negotiated"):
        NetControl(NetState(), NetFeature.CTRL_VQ, 4).carry_out(command(kind, b"\0"))


def test_a_longer_table_than_there_is_room_for_passes_all() -> None:
    many = [b"\x52\x54\1\0" + n.to_bytes(2, "big") for n in range(MOST_ADDRESSES + 1)]
    groups = [b"\1\0\x5e\0" + n.to_bytes(2, "big") for n in range(MOST_ADDRESSES)]
    wanted = filter_of(SELECTIVE, tables(many, groups))
    assert wanted.passes(frame(THEIRS))
    assert wanted.passes(frame(groups[-1]))
    assert not wanted.passes(frame(b"\1\0\x5e\0\1\0"))
    assert not filter_of(SELECTIVE, tables(many[1:], [])).passes(frame(THEIRS))


def test_without_the_driver_s_address_all_unicast_passes() -> None:
    assert filter_of(SELECTIVE, mac=None).passes(frame(THEIRS))
    assert not filter_of(SELECTIVE, mac=None).passes(frame(GROUP))


ADDRESSES = st.sampled_from([OURS, THEIRS, GROUP, OTHER_GROUP, BROADCAST])
TAGS = st.none() | st.sampled_from([0, 5, 4095])
COMMANDS = st.lists(
    st.builds(command, st.sampled_from(list(MODES)), st.sampled_from([b"\0", b"\1"]))
    | st.builds(
        vlan, st.sampled_from([Control.VLAN_ADD, Control.VLAN_DEL]), st.sampled_from([0, 5])
    )
    | st.builds(
        tables, st.lists(st.just(THEIRS), max_size=1), st.lists(st.just(GROUP), max_size=1)
    ),
    max_size=8,
)


def wanted_by(commands: list[bytes], to: bytes, tag: int | None, *, tagged: bool) -> bool:
    """What the specification has of it, in plain Python."""
    on, vlans, unicast, multicast = {"promisc"}, set[int](), {OURS}, set[bytes]()
    for each in commands:
        kind, data = Control(int.from_bytes(each[:2], "big")), each[2:]
        if kind in MODES:
            (on.add if data[0] else on.discard)(MODES[kind])
        elif kind is Control.MAC_TABLE_SET:
            unicast, multicast = {OURS}, set()
            if THEIRS in data:
                unicast.add(THEIRS)
            if GROUP in data:
                multicast.add(GROUP)
        else:
            number = int.from_bytes(data, "little")
            (vlans.add if kind is Control.VLAN_ADD else vlans.discard)(number)
    if "promisc" in on:
        return True
    if tagged and tag is not None and tag not in vlans:
        return False
    if to == BROADCAST:
        return "nobcast" not in on
    if to[0] & 1:
        return "nomulti" not in on and ("allmulti" in on or to in multicast)
    return "nouni" not in on and ("alluni" in on or to in unicast)


@given(COMMANDS, ADDRESSES, TAGS, st.booleans())
def test_the_filter_is_what_the_commands_say(
    commands: list[bytes], to: bytes, tag: int | None, tagged: bool
) -> None:
    features = ALL_FEATURES if tagged else ALL_FEATURES & ~NetFeature.CTRL_VLAN
    state = carried_out(*commands)
    passes = Filter(state.settings(), features, OURS).passes(frame(to, tag))
    assert passes == wanted_by(commands, to, tag, tagged=tagged)


# Served.


class Wire:
    """The other end of the device's datagrams."""

    def __init__(self, folder: Path) -> None:
        self._device = str(folder / "device")
        self.path = str(folder / "test")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self.options = {"backend": "datagram", "path": self._device, "peer": self.path}

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._device)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    made = Wire(tmp_path)
    yield made
    made.close()


@pytest.fixture
def served(wire: Wire) -> Iterator[Served]:
    description = {"type": "net", "mac": "52:54:00:00:00:01", **wire.options}
    with serve({**description, "guest_announces": True}) as served:
        yield served


def ask(guest: Guest, data: bytes, queue: int = CONTROL) -> int:
    return guest.do(queue, [data], [1]).data[0][0]


def arrived(guest: Guest, wire: Wire, *frames: bytes) -> list[bytes]:
    """Which of them the driver gets; one that it always does comes last."""
    last = frame(OURS, number=1 << 30)
    for data in (*frames, last):
        wire.send(data)
    found: list[bytes] = []
    while (data := guest.receive(RX)[HEADER.size :]) != last:
        found.append(data)
    return found


SOME = [frame(to, number=n) for n, to in enumerate((OURS, THEIRS, GROUP, OTHER_GROUP, BROADCAST))]


@pytest.mark.parametrize("packed", [False, True])
def test_a_driver_has_the_frames_that_it_asks_for(served: Served, wire: Wire, packed: bool) -> None:
    with served.guest(queues=3, packed=packed) as guest:
        guest.keep_filled(RX, count=32, size=200)
        assert arrived(guest, wire, *SOME) == SOME
        assert ask(guest, SELECTIVE) == CONTROL_OK
        assert arrived(guest, wire, *SOME) == [SOME[0], SOME[4]]
        assert ask(guest, tables([THEIRS], [GROUP])) == CONTROL_OK
        assert arrived(guest, wire, *SOME) == [*SOME[:3], SOME[4]]
        assert ask(guest, command(Control.RX_NOBCAST, b"\1")) == CONTROL_OK
        assert arrived(guest, wire, *SOME) == SOME[:3]
        assert ask(guest, command(Control.MAC_ADDR_SET, b"\x52\x54\0\0\0\3")) == CONTROL_OK
        assert ask(guest, tables([OURS], [])) == CONTROL_OK
        assert arrived(guest, wire, frame(b"\x52\x54\0\0\0\3"), SOME[1]) == [
            frame(b"\x52\x54\0\0\0\3")
        ]
        assert CONFIG.unpack(guest.config(CONFIG.size))["mac"] == b"\x52\x54\0\0\0\3"


def test_what_a_driver_has_asked_for_outlives_workers_and_no_ring(
    served: Served, wire: Wire
) -> None:
    with served.guest(queues=3) as guest:
        guest.keep_filled(RX, count=32, size=200)
        for each in (SELECTIVE, vlan(Control.VLAN_ADD, 5)):
            assert ask(guest, each) == CONTROL_OK
        tagged = [frame(OURS, tag, tag) for tag in (4, 5, 6)]
        for _ in range(2):
            assert arrived(guest, wire, *SOME, *tagged) == [SOME[0], SOME[4], tagged[1]]
            served.wait_worker(other_than=served.kill_worker())
        guest.stop_queue(CONTROL)
        assert arrived(guest, wire, *SOME, *tagged) == [*SOME, *tagged]
    with served.guest(queues=2) as guest:
        guest.keep_filled(RX, count=32, size=200)
        assert arrived(guest, wire, *SOME) == SOME


def test_c34_what_is_refused_is_told_and_the_queue_goes_on(served: Served, wire: Wire) -> None:
    with served.guest(queues=3) as guest:
        for bad in (b"", b"\0", b"\x2a\0\0", bytes(MOST_BYTES + 1), tables([OURS], []) + b"\0"):
            assert ask(guest, bad) == CONTROL_ERR
        guest.do(CONTROL, [SELECTIVE])  # without room for an answer
        guest.keep_filled(RX, count=8, size=200)
        assert arrived(guest, wire, SOME[1]) == []
        assert ask(guest, command(Control.RX_PROMISC, b"\1")) == CONTROL_OK
        assert arrived(guest, wire, SOME[1]) == [SOME[1]]
    served.wait_for_line("class 42 has no command 0")
    assert not [line for line in served.lines if "ERROR" in line]


def test_c34_a_control_queue_that_was_not_negotiated_does_nothing(
    served: Served, wire: Wire
) -> None:
    with served.guest(queues=3, without=NetFeature.CTRL_VQ) as guest:
        assert ask(guest, SELECTIVE) == CONTROL_ERR
        guest.keep_filled(RX, count=8, size=200)
        assert arrived(guest, wire, *SOME) == SOME


def test_a_driver_that_can_is_asked_to_announce_itself(served: Served, wire: Wire) -> None:
    with served.guest(queues=3, channel=True) as guest:
        guest.front_end.request("SEND_RARP", value=int.from_bytes(OURS, "little"))
        asked = CONFIG.unpack(guest.wait_config_change(size=CONFIG.size))
        assert asked["status"] & ANNOUNCE
        assert ask(guest, command(Control.ANNOUNCE_ACK)) == CONTROL_OK
        assert not CONFIG.unpack(guest.wait_config_change(size=CONFIG.size))["status"] & ANNOUNCE
        with pytest.raises(NoCompletion):
            guest.keep_filled(RX, count=1, size=200)
            guest.receive(RX, 0.05)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_without_mq_the_control_queue_is_the_third(engine: str) -> None:
    description = {"type": "net", "backend": "loopback", "pairs": 3, "engine": engine}
    with serve(description) as served:
        with served.guest(queues=3, without=NetFeature.MQ) as guest:
            assert ask(guest, SELECTIVE) == CONTROL_OK
            guest.keep_filled(RX, count=8, size=200)
            guest.do(1, [bytes(HEADER.size), frame(GROUP)])
            guest.do(1, [bytes(HEADER.size), frame(BROADCAST)])
            assert guest.receive(RX)[HEADER.size :] == frame(BROADCAST)
        with served.guest(queues=7) as guest:
            assert ask(guest, SELECTIVE, 6) == CONTROL_OK
            assert ask(guest, command(Control.MQ_PAIRS_SET, b"\3\0"), 6) == CONTROL_OK
            assert ask(guest, command(Control.MQ_PAIRS_SET, b"\4\0"), 6) == CONTROL_ERR
            for queue in (0, 2, 4):
                guest.keep_filled(queue, count=8, size=200)
                guest.do(queue + 1, [bytes(HEADER.size), frame(GROUP)])
                guest.do(queue + 1, [bytes(HEADER.size), frame(BROADCAST)])
                assert guest.receive(queue)[HEADER.size :] == frame(BROADCAST)


@pytest.mark.parametrize("engine", ["native", "python"])
def test_the_engines_filter_as_the_commands_say(engine: str) -> None:
    """Both, in what passes of all frames that there can be."""
    chosen = random.Random(7)
    some = [
        *(command(kind, value) for kind in MODES for value in (b"\0", b"\1")),
        *(vlan(kind, tag) for kind in (Control.VLAN_ADD, Control.VLAN_DEL) for tag in (0, 5)),
        *(tables(one, two) for one in ([], [THEIRS]) for two in ([], [GROUP])),
    ]
    targets = (OURS, THEIRS, GROUP, OTHER_GROUP, BROADCAST)
    frames = [(to, tag) for to in targets for tag in (None, 0, 5, 4095)]
    file = {"type": "net", "backend": "loopback", "mac": OURS.hex(":"), "engine": engine}
    with serve(file) as served, served.guest(queues=3) as guest:
        guest.keep_filled(RX, count=64, size=200)
        said: list[bytes] = []
        for turn in range(60):
            said.append(SELECTIVE if turn % 8 == 0 else chosen.choice(some))
            assert ask(guest, said[-1]) == CONTROL_OK
            for number, (to, tag) in enumerate(frames):
                guest.do(1, [bytes(HEADER.size), frame(to, tag, number)])
            wanted = {
                frame(to, tag, number)
                for number, (to, tag) in enumerate(frames)
                if wanted_by(said, to, tag, tagged=True)
            }
            assert {guest.receive(RX)[HEADER.size :] for _ in wanted} == wanted
        with pytest.raises(NoCompletion):
            guest.receive(RX, 0.05)  # nor was there one more

"""The control queue of a network device: what its driver has done by commands (5.1.6.5)."""

from __future__ import annotations

import struct

from vuproc.devices.net_state import ALL, MOST_ADDRESSES, Mode, NetState, Settings
from vuproc.spec.net import GUEST_OFFLOADS, MAC_BYTES, VLANS, Control, NetFeature

MOST_BYTES = 64 << 10
"""Of a command: tables of some ten thousand addresses."""

_COUNT = struct.Struct("<I")
_PAIRS = _VLAN = struct.Struct("<H")
_OFFLOADS = struct.Struct("<Q")
_MODES = {
    Control.RX_PROMISC: Mode.SELECTIVE,
    Control.RX_ALLMULTI: Mode.ALL_MULTICAST,
    Control.RX_ALLUNI: Mode.ALL_UNICAST,
    Control.RX_NOMULTI: Mode.NO_MULTICAST,
    Control.RX_NOUNI: Mode.NO_UNICAST,
    Control.RX_NOBCAST: Mode.NO_BROADCAST,
}
_NEEDS = {
    Control.RX_PROMISC: NetFeature.CTRL_RX,
    Control.RX_ALLMULTI: NetFeature.CTRL_RX,
    Control.RX_ALLUNI: NetFeature.CTRL_RX_EXTRA,
    Control.RX_NOMULTI: NetFeature.CTRL_RX_EXTRA,
    Control.RX_NOUNI: NetFeature.CTRL_RX_EXTRA,
    Control.RX_NOBCAST: NetFeature.CTRL_RX_EXTRA,
    Control.MAC_TABLE_SET: NetFeature.CTRL_RX,
    Control.MAC_ADDR_SET: NetFeature.CTRL_MAC_ADDR,
    Control.VLAN_ADD: NetFeature.CTRL_VLAN,
    Control.VLAN_DEL: NetFeature.CTRL_VLAN,
    Control.ANNOUNCE_ACK: NetFeature.GUEST_ANNOUNCE,
    Control.MQ_PAIRS_SET: NetFeature.MQ,
    Control.OFFLOADS_SET: NetFeature.CTRL_GUEST_OFFLOADS,
}
"""The feature that each command comes with (5.1.6.5, and 5.1.3.1)."""


class CommandRefused(ValueError):
    """A command that the driver may not give so."""


class NetControl:
    """Carries out commands for a driver that has accepted `features`, of a device with `pairs`."""

    def __init__(self, state: NetState, features: int, pairs: int) -> None:
        self._state = state
        self._features = features
        self._pairs = pairs

    def carry_out(self, command: bytes) -> Control:
        """Carry out one command, whole or not at all; which it was. Raises CommandRefused."""
        if len(command) < 2:
            raise CommandRefused(f"a command of {len(command)} bytes")
        try:
            kind = Control(command[0] << 8 | command[1])
        except ValueError:
            raise CommandRefused(f"class {command[0]} has no command {command[1]}") from None
        needed = _NEEDS[kind]
        if not self._features & needed:
            raise CommandRefused(f"{kind.name} needs {needed.name}, which is not negotiated")
        settings = self._state.settings()
        self._change(settings, kind, command[2:])
        self._state.settle(settings)
        return kind

    def _change(self, settings: Settings, kind: Control, data: bytes) -> None:
        if kind in _MODES:
            _set_mode(settings, kind, _only(kind, data, 1)[0])
            return
        match kind:
            case Control.MAC_TABLE_SET:
                _set_tables(settings, data)
            case Control.MAC_ADDR_SET:
                mac = _only(kind, data, MAC_BYTES)
                if mac[0] & 1 or not any(mac):
                    raise CommandRefused(f"{mac.hex(':')} is no address of a single interface")
                settings.mac[:] = mac
                settings.has_mac = 1
            case Control.VLAN_ADD | Control.VLAN_DEL:
                (vlan,) = _VLAN.unpack(_only(kind, data, _VLAN.size))
                if vlan >= VLANS:
                    raise CommandRefused(f"{kind.name}: there is no VLAN {vlan}")
                bit = 1 << vlan % 8
                if kind is Control.VLAN_ADD:
                    settings.vlans[vlan // 8] |= bit
                else:
                    settings.vlans[vlan // 8] &= ~bit
            case Control.ANNOUNCE_ACK:
                _only(kind, data, 0)
                self._state.announce = 0
            case Control.MQ_PAIRS_SET:
                (pairs,) = _PAIRS.unpack(_only(kind, data, _PAIRS.size))
                if not 1 <= pairs <= self._pairs:
                    raise CommandRefused(f"{pairs} pairs are not 1 to {self._pairs}")
                settings.pairs = pairs
            case Control.OFFLOADS_SET:
                (offloads,) = _OFFLOADS.unpack(_only(kind, data, _OFFLOADS.size))
                if offloads & ~(self._features & GUEST_OFFLOADS):
                    raise CommandRefused(f"offloads {offloads:#x} are not those negotiated")
                settings.offloads = offloads
                settings.has_offloads = 1


def _only(kind: Control, data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise CommandRefused(f"{kind.name} with {len(data)} bytes, not {size}")
    return data


def _set_mode(settings: Settings, kind: Control, value: int) -> None:
    if value > 1:
        raise CommandRefused(f"{kind.name}: {value} is neither on nor off")
    mode = _MODES[kind]
    if bool(value) == (kind is not Control.RX_PROMISC):
        settings.modes |= mode
    else:
        settings.modes &= ~mode


def _set_tables(settings: Settings, data: bytes) -> None:
    """Both tables at once: a number of addresses and those, first unicast, then multicast."""
    for name in ("unicast", "multicast"):
        if len(data) < _COUNT.size:
            raise CommandRefused(f"a table of {name} addresses that is cut off")
        (count,) = _COUNT.unpack_from(data)
        table = data[_COUNT.size :]
        size = count * MAC_BYTES
        if len(table) < size:
            raise CommandRefused(f"{count} {name} addresses in {len(table)} bytes")
        table, data = table[:size], table[size:]
        if count > MOST_ADDRESSES:
            setattr(settings, name, ALL)
        else:
            setattr(settings, name, count)
            getattr(settings, f"{name}_table")[:size] = table
    if data:
        raise CommandRefused(f"{len(data)} bytes behind the tables of addresses")

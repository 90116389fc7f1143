"""A network device as the master describes it: queues, features, configuration, and its outside."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import ClassVar

from vuproc import shared
from vuproc.device import Device, Resubmit
from vuproc.devices import net_tap
from vuproc.devices.net_backend import Backend, Loopback, Null
from vuproc.devices.net_options import MAX_PAIRS, NetOptions
from vuproc.devices.net_pcap import Replay, ReplayState, capture_file, replayed_file
from vuproc.devices.net_socket import Datagram, Stream
from vuproc.devices.net_state import NetState, Settings
from vuproc.devices.net_tap import Tap
from vuproc.fd import Fd
from vuproc.options import Options
from vuproc.sandbox.needs import Needs
from vuproc.spec.net import (
    ANNOUNCE,
    CONFIG,
    DUPLEX_UNKNOWN,
    LINK_UP,
    MAC_BYTES,
    SPEED_UNKNOWN,
    NetFeature,
)
from vuproc.spec.virtio import Feature

_CONTROL = (
    NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
)
"""What the control queue is for, in any device."""
_EVENT_FLAGS = os.EFD_NONBLOCK | os.EFD_CLOEXEC


class NetDescription(Device):
    """A network device but for its frames."""

    device_id = 1
    options_type: ClassVar[type[Options]] = NetOptions
    options: NetOptions
    # A frame that was perhaps sent is not sent again; a receive buffer is as good as new.
    resubmit: ClassVar[Mapping[int, Resubmit]] = {2 * pair + 1: "drop" for pair in range(MAX_PAIRS)}

    def __init__(self, options: NetOptions) -> None:
        super().__init__(options)
        self._state: NetState | None = None

    def num_queues(self) -> int:
        """Two a pair, and the control queue."""
        return 2 * self.options.pairs + 1

    def queue_groups(self) -> list[tuple[int, ...]]:
        """A worker a pair; the first has the control queue as well."""
        pairs = [(2 * pair, 2 * pair + 1) for pair in range(self.options.pairs)]
        return [(*pairs[0], 2 * self.options.pairs), *pairs[1:]]

    def offered_features(self) -> int:
        """MQ with several pairs, MAC and MTU if there is one, and offloads with a tap."""
        features = NetFeature.STATUS | NetFeature.MRG_RXBUF | Feature.IN_ORDER | _CONTROL
        if self.options.pairs > 1:
            features |= NetFeature.MQ
        if self.options.mac is not None:
            features |= NetFeature.MAC
        if self.options.mtu is not None:
            features |= NetFeature.MTU
        if self.options.guest_announces:
            features |= NetFeature.GUEST_ANNOUNCE
        if self.options.backend == "tap":
            features |= net_tap.features() | NetFeature.CTRL_GUEST_OFFLOADS
        return features

    def config_space(self) -> bytes:
        """virtio 1.3, 5.1.4: the address, the link, and how many pairs there are."""
        state = self._kept
        settings = None if state is None else state.settings()
        status = LINK_UP if self.link_up else 0
        if state is not None and state.announce:
            status |= ANNOUNCE
        return CONFIG.pack(
            mac=self._address(settings) or bytes(MAC_BYTES),
            status=status,
            max_virtqueue_pairs=self.options.pairs,
            mtu=self.options.mtu or 0,
            speed=SPEED_UNKNOWN,
            duplex=DUPLEX_UNKNOWN,
        )

    def sandbox_needs(self) -> Needs:
        """A way to the program at the other end; a TAP and captures are open already."""
        if self.options.backend not in ("stream", "datagram"):
            return self.needs
        # Of a program that is another user's.
        return self.needs.with_more(Needs(network="unix", capabilities=("DAC_OVERRIDE",)))

    def shared_files(self) -> dict[str, Fd]:
        """The state, and what back-ends have that is to outlive a worker."""
        options = self.options
        with shared.gathering() as files:
            files[self._named("state")] = shared.struct_file(NetState)
            if options.pairs > 1:
                for pair in range(options.pairs):
                    files[self._named(f"turn{pair}")] = Fd(os.eventfd(0, _EVENT_FLAGS))
            if options.capture is not None:
                files[self._named("capture")] = capture_file(options.capture, "capture")
            match options.backend:
                case "tap":
                    assert options.interface is not None
                    for pair in range(options.pairs):
                        files[self._named(f"tap{pair}")] = shared.tap(
                            options.interface,
                            vnet_hdr=True,
                            many=options.pairs > 1,
                            option="interface",
                        )
                case "datagram":
                    assert options.path is not None
                    files[self._named("datagram")] = shared.datagram_socket(options.path)
                case "pcap":
                    assert options.path is not None
                    files[self._named("replayed")] = replayed_file(options.path, "path")
                    files[self._named("place")] = shared.struct_file(ReplayState)
        return files

    def goes_on_with(self, left: Mapping[str, Fd]) -> bool:
        """Those of the same back-end, which say in their names whose they are."""
        return self._named("state") in left

    def make_backend(self, pair: int) -> Backend:
        """The outside of this pair, for its worker."""
        options = self.options
        match options.backend:
            case "loopback":
                return Loopback()
            case "tap":
                return Tap(self.shared[self._named(f"tap{pair}")])
            case "stream":
                assert options.path is not None
                return Stream(options.path)
            case "datagram":
                assert options.peer is not None
                return Datagram(self.shared[self._named("datagram")], options.peer)
            case "pcap":
                place = shared.struct(ReplayState, self.shared[self._named("place")])
                return Replay(self.shared[self._named("replayed")], place)
        return Null()

    def _named(self, what: str) -> str:
        options = self.options
        return shared.named(
            what,
            ctypes.sizeof(NetState),
            options.backend,
            options.interface,
            options.path,
            options.capture,
            options.pairs,
        )

    # The link.

    @property
    def link_up(self) -> bool:
        """Whether the link is up, for master and workers: as `vuproc link` has said."""
        state = self._kept
        return state is None or not state.down

    def set_link(self, up: bool) -> None:
        """In the master: have it up or down, whoever follows this master too."""
        state = self._kept
        if state is not None:
            state.down = not up

    @property
    def _kept(self) -> NetState | None:
        name = self._named("state")
        if self._state is None and name in self.shared:
            self._state = shared.struct(NetState, self.shared[name])
        return self._state

    def _address(self, settings: Settings | None) -> bytes | None:
        """Of the driver's interface, if it is known."""
        if settings is not None and settings.has_mac:
            return bytes(settings.mac)
        return self.options.address()

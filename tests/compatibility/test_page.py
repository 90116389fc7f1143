"""docs/compatibility.md is what tables and marks say, and these are what the code does."""

from __future__ import annotations

import pytest

from tests.compatibility.marks import Proof, all_proofs
from tests.compatibility.names import ITEMS, Kind, of_kind, protocol_name, ring_name
from tests.compatibility.ours import OFFERED, REFUSED, SENT, reason, when
from tests.compatibility.page import PAGE, page
from tests.compatibility.peers import PEERS, Peer
from tests.devices.network import Asked
from tests.devices.objects import Objects
from tests.devices.slow import Slow
from tests.devices.stateful import Notes
from tests.devices.windows import Windows
from vuproc import serve
from vuproc.devices.net import Net
from vuproc.devices.net_options import NetOptions
from vuproc.spec.vhost_user import FrontendRequest, ProtocolFeature
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.handlers import HANDLERS
from vuproc.vhost_user.hooks import protocol_features_of

BY_HOOK = [Asked(), Objects(), Windows(), Notes(), Slow(Slow.options_type(ledger="ledger"))]
"""Devices of which each has hooks that protocol features come by."""


@pytest.fixture(scope="module")
def proofs() -> list[Proof]:
    return all_proofs()


def test_the_page_is_what_is_generated(proofs: list[Proof]) -> None:
    """`python -m tests.compatibility` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page(proofs)


def test_each_message_and_bit_has_a_test_or_a_reason(proofs: list[Proof]) -> None:
    tested = {name for proof in proofs for name in proof.names}
    assert [name for name in ITEMS if name not in tested and not reason(name)] == []


def test_each_bit_is_offered_or_refused() -> None:
    bits = {item.name for kind in (Kind.PROTOCOL, Kind.RING) for item in of_kind(kind)}
    assert (set(OFFERED) & bits) | set(REFUSED) == bits
    assert not set(OFFERED) & set(REFUSED)
    assert set(OFFERED) <= set(ITEMS)


def test_the_bits_said_to_be_offered_are_those_of_the_code() -> None:
    by_key = (
        ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.PAGEFAULT | ProtocolFeature.XEN_MMAP
    )
    protocol = serve.PROTOCOL_FEATURES | by_key
    for device in BY_HOOK:
        protocol |= protocol_features_of(device)
    offered = {protocol_name(bit) for bit in ProtocolFeature if protocol & bit}
    ring = serve.RING_FEATURES | Feature.ACCESS_PLATFORM | Net(NetOptions()).offered_features()
    offered |= {ring_name(bit) for bit in Feature if ring & bit}
    assert offered == {name for name in OFFERED if ITEMS[name].kind in (Kind.PROTOCOL, Kind.RING)}


def test_the_messages_said_to_be_served_are_those_of_the_code() -> None:
    served = {item.name for item in of_kind(Kind.FRONT_END) if not reason(item.name)}
    assert served == {FrontendRequest(request).name for request in HANDLERS}
    assert {item.name for item in of_kind(Kind.BACK_END) if not reason(item.name)} == SENT


def test_what_a_message_needs_is_offered() -> None:
    assert when("SET_STATUS") == "`PROTOCOL_F_STATUS`"
    assert when("SET_OWNER") == "always"
    assert when("SET_VRING_ENDIAN") == ""
    assert reason("SET_VRING_ENDIAN") == "`PROTOCOL_F_CROSS_ENDIAN` not offered"


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_each_message_was_looked_for_in_each_peer(peer: Peer) -> None:
    """But one, and some bits of rings."""
    missing = {name for name in ITEMS if name not in peer.words}
    assert {name for name in missing if not name.startswith("VIRTIO_F_")} <= {"BACKEND_VRING_ERR"}

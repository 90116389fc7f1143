"""The protocol's tables say what the specification says: sizes, numbers, names, rules."""

from __future__ import annotations

import pytest

from vuproc.spec import inflight
from vuproc.spec import vhost_user as vu
from vuproc.spec.layout import Layout
from vuproc.spec.vhost_user import BACK_END, FRONT_END, MessageSpec, Reply


def words(text: str) -> list[str]:
    return text.split()


SIZES = {
    "header": 12,
    "u64": 8,
    "vring_state": 8,
    "vring_addr": 40,
    "mem_table_hdr": 8,
    "mem_region": 32,
    "mem_region_xen": 40,
    "mem_single": 40,
    "mem_single_xen": 48,
    "log": 16,
    "iotlb": 32,
    "config_hdr": 12,
    "vring_area": 24,
    "inflight": 24,
    "shared": 16,
    "xfer_state": 8,
    "mmap": 40,
    "shmem_config": 2056,
    "crypto_session": 1072,
    "inflight_split_hdr": 16,
    "inflight_split_dsc": 16,
    "inflight_packed_hdr": 32,
    "inflight_packed_dsc": 32,
}

FRONT_END_NAMES = words("""
GET_FEATURES SET_FEATURES SET_OWNER RESET_OWNER SET_MEM_TABLE SET_LOG_BASE SET_LOG_FD
SET_VRING_NUM SET_VRING_ADDR SET_VRING_BASE GET_VRING_BASE SET_VRING_KICK SET_VRING_CALL
SET_VRING_ERR GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_QUEUE_NUM SET_VRING_ENABLE SEND_RARP
NET_SET_MTU SET_BACKEND_REQ_FD IOTLB_MSG SET_VRING_ENDIAN GET_CONFIG SET_CONFIG
CREATE_CRYPTO_SESSION CLOSE_CRYPTO_SESSION POSTCOPY_ADVISE POSTCOPY_LISTEN POSTCOPY_END
GET_INFLIGHT_FD SET_INFLIGHT_FD GPU_SET_SOCKET RESET_DEVICE VRING_KICK GET_MAX_MEM_SLOTS ADD_MEM_REG
REM_MEM_REG SET_STATUS GET_STATUS GET_SHARED_OBJECT SET_DEVICE_STATE_FD CHECK_DEVICE_STATE
GET_SHMEM_CONFIG GET_VRING_BASE_SKIP_DRAIN
""")

BACK_END_NAMES = words("""
IOTLB_MSG CONFIG_CHANGE_MSG VRING_HOST_NOTIFIER_MSG VRING_CALL VRING_ERR SHARED_OBJECT_ADD
SHARED_OBJECT_REMOVE SHARED_OBJECT_LOOKUP SHMEM_MAP SHMEM_UNMAP
""")

PROTOCOL_FEATURES = words("""
MQ LOG_SHMFD RARP REPLY_ACK MTU BACKEND_REQ CROSS_ENDIAN CRYPTO_SESSION PAGEFAULT CONFIG
BACKEND_SEND_FD HOST_NOTIFIER INFLIGHT_SHMFD RESET_DEVICE INBAND_NOTIFICATIONS CONFIGURE_MEM_SLOTS
STATUS XEN_MMAP SHARED_OBJECT DEVICE_STATE GET_VRING_BASE_INFLIGHT GPA_ADDRESSES SHMEM
GET_VRING_BASE_SKIP_DRAIN
""")

OWN_REPLIES = {1, 11, 15, 17, 22, 24, 26, 28, 30, 31, 36, 40, 41, 42, 43, 44, 45}
BARRIERS = {2, 4, 5, 6, 9, 11, 12, 13, 18, 22, 29, 30, 32, 34, 35, 37, 38, 45}
WITH_FDS = {5, 6, 7, 12, 13, 14, 21, 32, 33, 37, 38, 42}


@pytest.mark.parametrize("layout", vu.STRUCTURES, ids=lambda layout: str(layout.name))
def test_structure_has_its_size_on_the_wire(layout: Layout) -> None:
    assert layout.size == SIZES[layout.name]


def test_every_structure_is_listed() -> None:
    assert {layout.name for layout in vu.STRUCTURES} == set(SIZES)


@pytest.mark.parametrize(
    ("structure", "field", "offset"),
    [
        # The order of the areas is descriptors, USED, AVAIL.
        (vu.VRING_ADDR, "desc", 8),
        (vu.VRING_ADDR, "used", 16),
        (vu.VRING_ADDR, "avail", 24),
        (vu.VRING_ADDR, "log", 32),
        (vu.MEM_SINGLE, "guest_addr", 8),
        (vu.IOTLB, "type", 25),
        (vu.MMAP, "fd_offset", 8),
        (vu.SHMEM_CONFIG, "sizes", 8),
        (vu.CRYPTO_SESSION, "session_id", 1064),
        (inflight.INFLIGHT_SPLIT_DESC, "next", 6),
        (inflight.INFLIGHT_PACKED_HEADER, "old_used_wrap", 21),
        (inflight.INFLIGHT_PACKED_DESC, "counter", 8),
    ],
)
def test_field_lies_where_the_specification_puts_it(
    structure: Layout, field: str, offset: int
) -> None:
    assert structure.offsets[field] == offset


@pytest.mark.parametrize(("number", "name"), list(enumerate(FRONT_END_NAMES, 1)))
def test_front_end_message_has_its_number_and_name(number: int, name: str) -> None:
    row = FRONT_END.get(number)
    assert row is not None
    assert row.name == name
    assert FRONT_END.named(name) is row


@pytest.mark.parametrize(("number", "name"), list(enumerate(BACK_END_NAMES, 1)))
def test_back_end_message_has_its_number_and_name(number: int, name: str) -> None:
    row = BACK_END.get(number)
    assert row is not None
    assert row.name == name


def test_there_are_no_further_messages() -> None:
    assert len(FRONT_END) == 45
    assert len(BACK_END) == 10
    for number in (0, 46, 1 << 31, 1 << 32):
        assert FRONT_END.get(number) is None
    assert FRONT_END.name_of(1006) == "message 1006"


@pytest.mark.parametrize(("bit", "name"), list(enumerate(PROTOCOL_FEATURES)))
def test_protocol_feature_has_its_bit(bit: int, name: str) -> None:
    assert vu.ProtocolFeature[name] == 1 << bit


def test_messages_with_a_reply_of_their_own() -> None:
    assert {row.number for row in FRONT_END if row.reply is Reply.OWN} == OWN_REPLIES
    assert FRONT_END.named("SET_LOG_BASE").reply is Reply.OWN_IF_LOG_SHMFD
    assert FRONT_END.named("SET_LOG_BASE").reply_payload.heads == (vu.LOG,)
    assert {row.name for row in BACK_END if row.reply is Reply.OWN} == {"SHARED_OBJECT_LOOKUP"}


def test_messages_whose_answer_waits_for_the_workers() -> None:
    assert {row.number for row in FRONT_END if row.barrier} == BARRIERS


def test_messages_that_carry_descriptors() -> None:
    assert {row.number for row in FRONT_END if row.fds[1] > 0} == WITH_FDS
    assert {row.name for row in BACK_END if row.fds[1] > 0} == {
        "VRING_HOST_NOTIFIER_MSG",
        "SHMEM_MAP",
    }


@pytest.mark.parametrize("row", [*FRONT_END, *BACK_END], ids=lambda row: str(row.name))
def test_every_error_reply_fits_its_message(row: MessageSpec) -> None:
    if row.error_reply is not None:
        row.reply_payload.decode(row.error_reply)


@pytest.mark.parametrize("row", [*FRONT_END, *BACK_END], ids=lambda row: str(row.name))
def test_every_payload_fits_a_message(row: MessageSpec) -> None:
    for payload in (row.payload, row.reply_payload):
        assert all(head.size <= vu.PAYLOAD_MAX for head in payload.heads)


def test_every_back_end_message_needs_the_channel() -> None:
    assert all(row.gate.protocol & vu.ProtocolFeature.BACKEND_REQ for row in BACK_END)


def test_replies_carry_exactly_version_and_reply() -> None:
    assert vu.REPLY_FLAGS == 0x5

"""The size of an in-flight record, by what real back-ends and front-ends were seen to use."""

from __future__ import annotations

import pytest

from vuproc.spec.inflight import RECORD_ALIGN, split_record_bytes


def test_a_record_has_the_size_that_a_vmm_was_seen_to_ask_for() -> None:
    # QEMU and libvhost-user, 2 queues of 128: 0x1080 bytes.
    assert 2 * split_record_bytes(128) == 0x1080


@pytest.mark.parametrize(("size", "expected"), [(1, 64), (3, 64), (4, 128), (32768, 524352)])
def test_a_record_is_its_header_and_entries_rounded_up(size: int, expected: int) -> None:
    assert split_record_bytes(size) == expected
    assert 0 <= expected - 16 - 16 * size < RECORD_ALIGN

"""The memory table: replaced, grown, shrunk, and guarded against what no front-end should send."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.vhost_user.dialogue import (
    GUEST,
    OFFER,
    USER,
    Dialogue,
    Fields,
    Outcome,
    eventfd,
    kinds,
    memory,
)
from vuproc.fd import Fd
from vuproc.spec.vhost_user import FRONT_END, MEM_REGION, MEM_TABLE_HEADER
from vuproc.vhost_user.effects import AddRegion, EffectFailed, RemoveRegion, SetMemory

PAGE = 4096


def table(dialogue: Dialogue, *items: Fields, fds: list[Fd] | None = None) -> Outcome:
    owned = [memory(0x10000) for _ in items] if fds is None else fds
    return dialogue.tell("SET_MEM_TABLE", owned, items=list(items))


def add(dialogue: Dialogue, fields: Fields, fd: Fd | None = None) -> Outcome:
    return dialogue.tell("ADD_MEM_REG", [fd or memory(0x10000)], **fields)


def remove(dialogue: Dialogue, fields: Fields, fds: tuple[Fd, ...] = ()) -> Outcome:
    return dialogue.tell("REM_MEM_REG", fds, **fields)


# ---- what works ----------------------------------------------------------------------------------


def test_a_table_pairs_each_region_with_its_descriptor() -> None:
    with Dialogue() as dialogue:
        fds = [memory(0x10000) for _ in range(8)]
        outcome = table(dialogue, *(dialogue.region(n) for n in range(8)), fds=fds)
        (effect,) = outcome.effects
        assert isinstance(effect, SetMemory)
        assert [region.fd for region in effect.regions] == fds
        assert [region.guest_addr for region in effect.regions] == [
            GUEST + n * 0x10000 for n in range(8)
        ]
        assert dialogue.state.regions == effect.regions


def test_a_new_table_replaces_the_old_one_whose_descriptors_close_after_the_workers_switched() -> (
    None
):
    with Dialogue() as dialogue:
        old, new = memory(0x10000), memory(0x10000)
        table(dialogue, dialogue.region(0), fds=[old])
        seen = []
        dialogue.result = lambda effect: seen.append(old.closed)
        assert table(dialogue, dialogue.region(1), fds=[new]).ok
        assert seen == [False]
        assert old.closed
        assert not new.closed


def test_a_table_padded_to_72_bytes_is_taken_as_user_mode_linux_sends_it() -> None:
    with Dialogue() as dialogue:
        payload = MEM_TABLE_HEADER.pack(nregions=1) + MEM_REGION.pack(**dialogue.region(0))
        fds = [memory(0x10000)]
        outcome = dialogue.tell("SET_MEM_TABLE", fds, payload=payload.ljust(72, b"\0"))
        assert outcome.ok
        assert len(dialogue.state.regions) == 1


def test_a_region_may_begin_anywhere_in_its_file() -> None:
    with Dialogue() as dialogue:
        assert table(dialogue, dialogue.region(0, mmap_offset=0xC4F000), fds=[memory(0xC5F000)]).ok


def test_regions_are_added_and_removed_while_a_ring_runs() -> None:
    with Dialogue() as dialogue:
        dialogue.remember()
        assert dialogue.start(0).ok
        far = dialogue.region(64)
        (effect,) = add(dialogue, far).effects
        assert isinstance(effect, AddRegion)
        assert remove(dialogue, far).effects == (RemoveRegion(effect.region),)
        assert effect.region.fd.closed
        assert dialogue.session.running() == (0,)


def test_a_descriptor_with_rem_mem_reg_is_closed_and_no_error() -> None:
    with Dialogue() as dialogue:
        add(dialogue, dialogue.region(0))
        extra = memory(0x10000)
        assert remove(dialogue, dialogue.region(0), (extra,)).ok
        assert extra.closed
        assert dialogue.state.regions == ()


def test_rem_mem_reg_ignores_the_mmap_offset() -> None:
    with Dialogue() as dialogue:
        add(dialogue, dialogue.region(0))
        assert remove(dialogue, dialogue.region(0, mmap_offset=PAGE)).ok


def test_b15_the_region_of_a_running_ring_may_go_the_worker_breaks_the_ring() -> None:
    with Dialogue() as dialogue:
        add(dialogue, dialogue.region(0))
        assert dialogue.start(0).ok
        assert kinds(remove(dialogue, dialogue.region(0)).effects) == ["RemoveRegion"]
        assert dialogue.state.rings[0].started


def test_a30_a_table_that_a_worker_refuses_leaves_the_old_one_in_force() -> None:
    with Dialogue() as dialogue:
        table(dialogue, dialogue.region(0))
        before = dialogue.state
        dialogue.result = lambda effect: EffectFailed("cannot map")
        new = memory(0x10000)
        assert table(dialogue, dialogue.region(1), fds=[new]).failed
        assert new.closed
        assert dialogue.state is before
        assert not before.regions[0].fd.closed


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 9, 0xFFFFFFFF])
def test_b1_a_count_that_does_not_match_bytes_and_descriptors_is_refused(count: int) -> None:
    with Dialogue() as dialogue:
        payload = MEM_TABLE_HEADER.pack(nregions=count) + b"".join(
            MEM_REGION.pack(**dialogue.region(number)) for number in range(2)
        )
        fds = [memory(0x10000) for _ in range(2)]
        assert dialogue.tell("SET_MEM_TABLE", fds, payload=payload).failed
        assert dialogue.state.regions == ()


def test_b1_an_empty_table_is_refused() -> None:
    with Dialogue() as dialogue:
        assert table(dialogue).failed
        assert table(dialogue, fds=[memory()]).failed


def test_b1_64_regions_are_taken_and_65_refused() -> None:
    with Dialogue() as dialogue:
        assert table(dialogue, *(dialogue.region(n) for n in range(64))).ok
        before = dialogue.state
        assert table(dialogue, *(dialogue.region(n) for n in range(65))).failed
        assert dialogue.state is before


@pytest.mark.parametrize("count", [1, 3])
def test_a16_b1_descriptors_fewer_or_more_than_regions_are_refused(count: int) -> None:
    with Dialogue() as dialogue:
        fds = [memory(0x10000) for _ in range(count)]
        assert table(dialogue, dialogue.region(0), dialogue.region(1), fds=fds).failed
        assert all(fd.closed for fd in fds)


BAD_REGIONS = {
    "b2_size_zero": {"size": 0},
    "b3_offset_wraps": {"mmap_offset": (1 << 64) - PAGE},
    "b4_guest_wraps": {"guest_addr": (1 << 64) - PAGE},
    "b4_user_wraps": {"user_addr": (1 << 64) - PAGE},
    "b7_larger_than_its_file": {"size": 0x10001},
    "b7_offset_past_the_file": {"mmap_offset": PAGE},
    "b7_size_huge": {"size": 1 << 63},
    "b3_everything_wraps": {"size": (1 << 64) - 1},
}


@pytest.mark.parametrize("changes", BAD_REGIONS.values(), ids=list(BAD_REGIONS))
def test_b2_b3_b4_b7_region_that_cannot_be_is_refused(changes: Fields) -> None:
    with Dialogue() as dialogue:
        assert add(dialogue, dialogue.region(0)).ok
        before = dialogue.state
        bad = dialogue.region(1, **changes)
        assert add(dialogue, bad).failed
        assert table(dialogue, dialogue.region(2), bad).failed
        assert dialogue.state is before


def test_b4_a_region_may_end_at_the_end_of_the_address_space() -> None:
    with Dialogue() as dialogue:
        assert add(dialogue, dialogue.region(0, guest_addr=(1 << 64) - 0x10000)).ok


@pytest.mark.parametrize("space", ["guest_addr", "user_addr"])
@pytest.mark.parametrize("distance", [0, PAGE, -PAGE, 0xF000])
def test_b5_regions_that_overlap_are_refused(space: str, distance: int) -> None:
    with Dialogue() as dialogue:
        first = dialogue.region(4)
        second = dialogue.region(9, **{space: first[space] + distance})
        assert table(dialogue, first, second).failed
        assert table(dialogue, second, first).failed
        assert add(dialogue, first).ok
        assert add(dialogue, second).failed


def test_b7_a_file_without_any_byte_is_refused() -> None:
    with Dialogue() as dialogue:
        assert add(dialogue, dialogue.region(0), memory(0)).failed


def test_b12_descriptors_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(bytes(0x10000))
    reader, writer = map(Fd, os.pipe())
    with Dialogue() as dialogue:
        for fd in (
            eventfd(),
            reader,
            writer,
            Fd(socket.socket(socket.AF_UNIX).detach()),
            Fd(os.open(tmp_path, os.O_RDONLY)),
            Fd(os.open(file, os.O_RDONLY)),
            Fd(os.open(file, os.O_WRONLY)),
            Fd(os.open(file, os.O_PATH)),
            Fd(os.open("/dev/zero", os.O_RDWR)),
        ):
            assert add(dialogue, dialogue.region(0), fd).failed
            assert fd.closed
        assert add(dialogue, dialogue.region(0), Fd(os.open(file, os.O_RDWR))).ok


def test_b13_more_regions_than_slots_are_refused() -> None:
    with Dialogue(replace(OFFER, max_regions=20)) as dialogue:
        shared = memory(0x10000)
        results = [add(dialogue, dialogue.region(number), shared.dup()).ok for number in range(200)]
        shared.close()
        assert results == [True] * 20 + [False] * 180
        assert len(dialogue.state.regions) == 20
        assert table(dialogue, *(dialogue.region(n) for n in range(21))).failed


@pytest.mark.parametrize("field", ["guest_addr", "user_addr", "size"])
def test_b14_a_region_that_is_not_known_is_not_removed(field: str) -> None:
    with Dialogue() as dialogue:
        region = dialogue.region(0)
        assert remove(dialogue, region).failed
        add(dialogue, region)
        before = dialogue.state
        assert remove(dialogue, {**region, field: region[field] + PAGE}).failed
        assert dialogue.state is before


def test_sealed_and_unlinked_files_are_memory_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "ram"
    file.write_bytes(bytes(0x10000))
    unlinked = Fd(os.open(file, os.O_RDWR))
    file.unlink()
    sealed = Fd(os.memfd_create("ram", os.MFD_ALLOW_SEALING))
    os.ftruncate(sealed.fileno(), 0x10000)
    fcntl.fcntl(sealed.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with Dialogue() as dialogue:
        assert add(dialogue, dialogue.region(0), unlinked).ok
        assert add(dialogue, dialogue.region(1), sealed).ok


def test_add_mem_reg_always_has_a_descriptor() -> None:
    with Dialogue() as dialogue:
        assert dialogue.tell("ADD_MEM_REG", **dialogue.region(0)).failed


def test_memory_is_looked_up_by_user_addresses_not_by_guest_ones() -> None:
    with Dialogue() as dialogue:
        assert dialogue.remember().ok
        assert dialogue.address(0, at=GUEST).failed
        assert dialogue.address(0, at=USER).ok


def test_every_memory_message_waits_for_the_workers() -> None:
    for name in ("SET_MEM_TABLE", "ADD_MEM_REG", "REM_MEM_REG"):
        assert FRONT_END.named(name).barrier

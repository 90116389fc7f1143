"""A disk whose changes go back to an object store."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.devices import dying_helper, google_store, s3_server
from tests.devices.bucket import Bucket
from tests.devices.test_blk import ranges
from tests.devices.test_blk_overlay import content
from tests.guest.load import LONG, in_long_form
from vuproc.devices.blk import BlkOptions
from vuproc.devices.blk_write_area import Area, WriteBackHeader, begun_runs, write_header
from vuproc.fd import Fd
from vuproc.ops.admin import Request, ask
from vuproc.spec.blk import SECTOR_SIZE, BlkStatus, BlkType
from vuproc.testing.block import Block
from vuproc.testing.errors import ServeFailed
from vuproc.testing.plugin import ServeDevice
from vuproc.testing.serve import Served, serve

pytestmark = pytest.mark.timeout(180)

PIECE = 64 << 10
SIZE = 16 * PIECE + 3 * SECTOR_SIZE
SECTORS = SIZE // SECTOR_SIZE
BOUND_S = 60.0
NEVER = 86400
DEATHS = 24 if LONG else 9
"""A third each of workers, helpers and masters."""


Gated = Callable[[], AbstractContextManager[Bucket]]


@contextmanager
def s3() -> Iterator[Gated]:
    with s3_server.running() as port:
        yield partial(s3_server.gated, port)


@contextmanager
def google() -> Iterator[Gated]:
    with google_store.running() as server:
        yield partial(google_store.gated, server)


def over(*stores: Callable[[], AbstractContextManager[Gated]]) -> pytest.MarkDecorator:
    """A test is over these in every run. One that does not say so is over S3, and over Google's
    store in the long form.
    """
    names = [store.__name__ for store in stores]
    return pytest.mark.parametrize("server", stores, ids=names, indirect=True, scope="module")


@pytest.fixture(scope="module", params=[s3, *in_long_form(google)], ids=lambda it: it.__name__)
def server(request: pytest.FixtureRequest) -> Iterator[Gated]:
    with request.param() as gated:
        yield gated


@pytest.fixture
def store(server: Gated, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with server() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store
        store.delete_all()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An image, with a hole in it."""
    path = tmp_path / "golden.raw"
    data = bytearray(content(0, SIZE))
    data[3 * PIECE : 5 * PIECE] = bytes(2 * PIECE)
    path.write_bytes(data)
    return path


@pytest.fixture
def pushed(store: Bucket, raw: Path) -> bytes:
    vuproc("image", "push", str(raw), url_of(store), "--piece-size", "64K")
    return raw.read_bytes()


def url_of(store: Bucket) -> str:
    """Of the image in pieces that the tests have."""
    return f"{store.url}/disk/"


def disk_of(store: Bucket, tmp_path: Path, **options: Any) -> dict[str, Any]:
    image = str(tmp_path / "cache.overlay")
    return {"type": "blk", "url": url_of(store), "image": image, "write_back": NEVER, **options}


def vuproc(*words: str, code: int = 0) -> str:
    """A command of vuproc's; what it says."""
    command = [sys.executable, "-m", "vuproc", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND_S)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def write_back(served: Served) -> None:
    number = wanted(served)
    until(lambda: said(served)["answered"] >= number)


def wanted(served: Served) -> int:
    """Ask for a run, and go on; its number."""
    return int(ask(served.socket, Request("write-back"))["number"])


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(served: Served) -> dict[str, Any]:
    return dict(served.status().details["write-back"])


def scattered(disk: Block, expected: bytearray, order: random.Random, count: int) -> None:
    """Write here and there, across pieces, too."""
    for number in range(count):
        length = order.choice([1, 3, 8, 40])
        sector = order.randrange(SECTORS - length)
        data = content(order.randrange(1000) + number, length * SECTOR_SIZE)
        disk.write(sector, data)
        expected[sector * SECTOR_SIZE : sector * SECTOR_SIZE + len(data)] = data


@over(s3, google)
def test_an_image_is_pushed_and_pulled(
    store: Bucket, raw: Path, pushed: bytes, tmp_path: Path
) -> None:
    assert store.image("disk") == pushed
    assert store.manifest("disk")["pieces"].count(-1) == 2
    vuproc("image", "pull", url_of(store), str(tmp_path / "back.raw"))
    assert (tmp_path / "back.raw").read_bytes() == pushed
    assert "there is an image already" in vuproc("image", "push", str(raw), url_of(store), code=1)
    assert store.image("disk") == pushed


def test_what_is_written_goes_to_the_store(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    expected = bytearray(pushed)
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        disk = Block(guest)
        assert disk.read(0, PIECE) == pushed[:PIECE]
        scattered(disk, expected, random.Random(1), 12)
        assert store.image("disk") == pushed
        write_back(served)
        assert store.image("disk") == bytes(expected)
        before = set(store.names())
        vuproc("write-back", str(served.socket), "--timeout", "50")  # nothing is new
        assert set(store.names()) == before
        scattered(disk, expected, random.Random(2), 12)
        write_back(served)
        assert store.image("disk") == bytes(expected)
        assert disk.read(0, SIZE) == bytes(expected)


def test_a_fresh_cache_has_what_was_written(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    """At the end of vuproc the rest is written back, too."""
    expected = bytearray(pushed)
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        scattered(Block(guest), expected, random.Random(3), 8)
    assert store.image("disk") == bytes(expected)
    other = disk_of(store, tmp_path, image=str(tmp_path / "other.overlay"))
    with serve(other) as served, served.guest() as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)
        Block(guest).write(0, b"o" * 512)
    with (
        serve({"type": "blk", "url": url_of(store), "readonly": True}) as served,
        served.guest() as guest,
    ):
        assert Block(guest).read(0, 512) == b"o" * 512


def test_what_there_is_no_time_for_stays_for_the_next_start(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    expected = bytearray(pushed)
    device = disk_of(store, tmp_path, write_back_end=0)
    with serve(device) as served, served.guest() as guest:
        scattered(Block(guest), expected, random.Random(4), 8)
        store.gate.silence()
    store.gate.shut()
    store.gate.open()
    assert store.image("disk") == pushed
    with serve(device) as served, served.guest() as guest:
        assert said(served)["changed_bytes"] > 0
        write_back(served)
        assert Block(guest).read(0, SIZE) == bytes(expected)
        assert said(served)["changed_bytes"] == 0
    assert store.image("disk") == bytes(expected)


def test_an_interval_writes_back_by_itself(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    with serve(disk_of(store, tmp_path, write_back=1)) as served, served.guest() as guest:
        Block(guest).write(0, b"i" * 512)
        until(lambda: said(served)["runs"] == 1)
        assert store.image("disk") == b"i" * 512 + pushed[512:]


def test_each_version_is_of_one_moment(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    """A number goes to one piece after the other, time and again, while the disk is written back:
    in the store each piece has the number of those before it, or the one before that.
    """
    pieces = SIZE // PIECE
    each = PIECE // SECTOR_SIZE
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        disk = Block(guest)
        versions: set[bytes] = set()
        number = 0
        deadline = time.monotonic() + BOUND_S
        while len(versions) < 4:
            assert time.monotonic() < deadline
            number += 1
            for piece in range(pieces):
                sector = piece * each + number % each
                disk.write(sector, number.to_bytes(8, "little") * 64)
                # An own place for the last one, which is written each time.
                disk.write(piece * each, number.to_bytes(8, "little") * 64)
            wanted(served)
            image = store.image_or_none("disk")
            if image is None or image in versions or image == pushed:
                continue
            versions.add(image)
            found = [
                int.from_bytes(image[piece * PIECE : piece * PIECE + 8], "little")
                for piece in range(pieces)
            ]
            assert found == sorted(found, reverse=True)
            assert found[0] - found[-1] <= 1, found
    assert said_nothing_wrong(served)


def said_nothing_wrong(served: Served) -> bool:
    return not [line for line in served.lines if " ERROR " in line or "Traceback" in line]


def test_discarded_and_zeroed_pieces_are_no_objects(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    expected = bytearray(pushed)
    each = PIECE // SECTOR_SIZE
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        disk = Block(guest)
        for kind, piece in ((BlkType.DISCARD, 1), (BlkType.WRITE_ZEROES, 6)):
            disk.write(piece * each, b"x" * PIECE)
            wanted = [ranges((piece * each, each, 0))]
            assert disk.request(kind, 0, wanted).status == BlkStatus.OK
            expected[piece * PIECE : (piece + 1) * PIECE] = bytes(PIECE)
        # Of what was never written nothing is there to be given back.
        far = [ranges((9 * each, each, 0))]
        assert disk.request(BlkType.DISCARD, 0, far).status == BlkStatus.OK
        write_back(served)
        assert disk.read(0, SIZE) == bytes(expected)
    assert store.image("disk") == bytes(expected)
    assert [store.manifest("disk")["pieces"][piece] for piece in (1, 6)] == [-1, -1]


def test_a_raw_object_is_the_base_of_an_image_in_pieces(
    store: Bucket, raw: Path, tmp_path: Path
) -> None:
    store.put("golden.raw", raw.read_bytes())
    vuproc("image", "push", f"{store.url}/golden.raw", url_of(store), "--piece-size", "64K")
    assert store.names() == ["disk/manifest.json", "golden.raw"]
    expected = bytearray(raw.read_bytes())
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        scattered(Block(guest), expected, random.Random(5), 4)
        # Zeros over what the base has.
        wanted = [ranges((0, PIECE // SECTOR_SIZE, 0))]
        assert Block(guest).request(BlkType.WRITE_ZEROES, 0, wanted).status == BlkStatus.OK
        expected[:PIECE] = bytes(PIECE)
        write_back(served)
        assert Block(guest).read(0, SIZE) == bytes(expected)
    assert store.image("disk") == bytes(expected)
    assert store.get("golden.raw") == raw.read_bytes()
    assert -2 in store.manifest("disk")["pieces"]


# Deaths.


def test_helpers_that_die_at_every_step_leave_a_whole_image(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    """Each version that is seen in the store is one that the disk once was."""
    type_ref = f"{dying_helper.__file__}:DyingHelper"
    device = disk_of(store, tmp_path, type=type_ref, write_back_end=0)
    expected = bytearray(pushed)
    order = random.Random(6)
    was = {pushed}
    with serve(device) as served, served.guest() as guest:
        disk = Block(guest)
        deadline = time.monotonic() + 2 * BOUND_S
        deaths: set[int | None] = set()
        while len(deaths) < 12:
            assert time.monotonic() < deadline, deaths
            for _ in range(3):
                scattered(disk, expected, order, 1)
                was.add(bytes(expected))
            wanted(served)
            deaths.add(served.status().helper)
            seen = store.image_or_none("disk")
            assert seen is None or seen in was
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)
        write_back(served)
        assert store.image("disk") == bytes(expected)
        Block(guest).write(0, b"w" * 512)
        write_back(served)  # what is left over of those before is deleted by now
        Block(guest).write(0, b"v" * 512)
        write_back(served)
    manifest = store.manifest("disk")
    named = {
        f"disk/{manifest['runs'][place]}/{number:016x}"
        for number, place in enumerate(manifest["pieces"])
        if place >= 0
    }
    kept = {f"disk/{name}" for name in manifest["obsolete"]}
    assert set(store.names()) - {"disk/manifest.json"} == named | kept


@over(s3, google)
def test_workers_helpers_and_masters_that_are_killed_lose_nothing(
    store: Bucket, pushed: bytes, tmp_path: Path, vuproc_device: ServeDevice
) -> None:
    order = random.Random(8)
    device = disk_of(store, tmp_path, queues=2, write_back=1, write_back_end=0)
    served = vuproc_device(device, arguments=["--supervised"])
    expected = bytearray(pushed)
    with served.guest(queues=2) as guest:
        disk = Block(guest)
        for number in range(DEATHS):
            tokens = []
            for at, sector in enumerate(order.sample(range(SECTORS), 24)):
                data = (b"%08d%08d" % (number, sector)) * (SECTOR_SIZE // 16)
                expected[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE] = data
                tokens.append(disk.submit(BlkType.OUT, sector, [data], queue=at % 2))
                if at == 12:
                    kill(served, number)
            for token in tokens:
                assert guest.wait(token).data[-1] == bytes([BlkStatus.OK])
        for queue in range(2):
            assert disk.read(0, SIZE, queue=queue) == bytes(expected)
        write_back(served)
        assert store.image("disk") == bytes(expected)
    vuproc("image", "pull", url_of(store), str(tmp_path / "back.raw"))
    assert (tmp_path / "back.raw").read_bytes() == bytes(expected)
    reader = {"type": "blk", "url": url_of(store), "readonly": True}
    with vuproc_device(reader).guest() as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)


def kill(served: Served, number: int) -> None:
    if number % 3 == 0:
        served.kill_worker(number // 3 % 2)
    elif number % 3 == 1:
        pid = served.status().helper
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    else:
        os.kill(served.status().pid, signal.SIGKILL)


def test_all_processes_at_once_may_be_killed(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    """Nothing of it is in memory then: what was flushed is in the file, and is written back."""
    expected = bytearray(pushed)
    device = disk_of(store, tmp_path, write_back_end=0)
    with contextlib.suppress(ServeFailed), serve(device) as served, served.guest() as guest:
        disk = Block(guest)
        scattered(disk, expected, random.Random(9), 8)
        disk.flush()
        served.kill()
    with serve(device) as served, served.guest() as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)
        write_back(served)
    assert store.image("disk") == bytes(expected)


def test_after_a_loss_of_power_all_that_the_overlay_has_counts_as_changed(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    """As if marks had not reached the disk: they are gone, and another life of the machine."""
    expected = bytearray(pushed)
    device = disk_of(store, tmp_path, write_back_end=0)
    with serve(device) as served, served.guest() as guest:
        scattered(Block(guest), expected, random.Random(10), 8)
        store.gate.silence()
    store.gate.shut()
    store.gate.open()
    area = Area(SIZE, PIECE)
    with Fd(os.open(tmp_path / "cache.overlay", os.O_RDWR)) as file:
        os.pwrite(file.fileno(), bytes(area.marks_bytes), area.marks_at)
        header = WriteBackHeader(bytes(16), synced=False, begun=begun_runs(file))
        write_header(file, header)
    with serve(device) as served, served.guest() as guest:
        assert Block(guest).read(0, SIZE) == bytes(expected)
        write_back(served)
        assert store.image("disk") == bytes(expected)
        served.wait_for_line("all that it has counts as changed")


def test_what_was_written_without_write_back_is_not_forgotten(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    expected = bytearray(pushed)
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        scattered(Block(guest), expected, random.Random(11), 2)
    assert store.image("disk") == bytes(expected)
    with serve(disk_of(store, tmp_path, write_back="off")) as served, served.guest() as guest:
        scattered(Block(guest), expected, random.Random(12), 4)
    with serve(disk_of(store, tmp_path)) as served:
        write_back(served)
    assert store.image("disk") == bytes(expected)


# A store that is away, or another's.


def test_a_store_that_is_away_gets_it_later(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    expected = bytearray(pushed)
    with serve(disk_of(store, tmp_path, write_back=1)) as served, served.guest() as guest:
        disk = Block(guest)
        assert disk.read(0, SIZE) == pushed
        store.gate.shut()
        scattered(disk, expected, random.Random(13), 8)
        until(lambda: said(served)["state"] == "trying again")
        assert said(served)["why"]
        scattered(disk, expected, random.Random(14), 8)
        assert disk.read(0, SIZE) == bytes(expected)
        store.gate.open()
        until(lambda: store.image("disk") == bytes(expected))
        served.wait_for_line("the store answers again")


def test_another_writer_is_a_conflict(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    other = disk_of(store, tmp_path, image=str(tmp_path / "other.overlay"))
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        disk = Block(guest)
        assert disk.read(0, SIZE) == pushed
        with serve(other) as another, another.guest() as second:
            Block(second).write(8, b"2" * 512)
        theirs = store.image("disk")
        disk.write(0, b"1" * 512)
        message = vuproc("write-back", str(served.socket), code=1)
        assert "somebody else has written the image" in message
        assert said(served)["state"] == "stopped"
        served.wait_for_line("write-back stopped: somebody else has written the image")
        assert disk.read(0, 512) == b"1" * 512
        assert "stopped" in vuproc("write-back", str(served.socket), code=1)
    assert store.image("disk") == theirs
    with pytest.raises(Exception, match="is an overlay of another object than is at"):
        with serve(disk_of(store, tmp_path)):
            pass  # pragma: no cover


def test_a_writer_in_the_middle_of_a_run_is_a_conflict(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    """The manifest is exchanged on a condition: what was looked at before does not count."""
    other = disk_of(store, tmp_path, image=str(tmp_path / "other.overlay"))
    late = f"{dying_helper.__file__}:LateHelper"
    with serve(disk_of(store, tmp_path, type=late)) as served, served.guest() as guest:
        Block(guest).write(0, b"1" * 512)
        served_write_back = subprocess.Popen(
            [sys.executable, "-m", "vuproc", "write-back", str(served.socket)],
            stderr=subprocess.PIPE,
        )
        until((tmp_path / "cache.overlay.before").exists)
        with serve(other) as another, another.guest() as second:
            Block(second).write(8, b"2" * 512)
        (tmp_path / "cache.overlay.goes_on").touch()
        _, message = served_write_back.communicate(timeout=BOUND_S)
        assert b"somebody else has written the image" in message
    assert store.image("disk") == pushed[:4096] + b"2" * 512 + pushed[4608:]


@over(s3)  # there are none to get wrong in the other
def test_credentials_that_are_wrong(
    store: Bucket, pushed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server.running(checks_keys=True) as port, s3_server.gated(port) as strict:
        for name, value in strict.environment.items():
            monkeypatch.setenv(name, value)
        message = vuproc("image", "pull", url_of(store), str(tmp_path / "no.raw"), code=1)
        assert "403" in message or "InvalidAccessKeyId" in message
        assert not (tmp_path / "no.raw").exists()


def test_rights_that_are_taken_away_meanwhile(store: Bucket, pushed: bytes, tmp_path: Path) -> None:
    """The store says no: it is said, nothing is lost, and it is tried on."""
    with serve(disk_of(store, tmp_path, write_back=1, write_back_end=0)) as served:
        with served.guest() as guest:
            disk = Block(guest)
            assert disk.read(0, SIZE) == pushed
            store.gate.refuse()
            disk.write(0, b"r" * 512)
            until(lambda: said(served)["state"] == "trying again")
            assert "403" in str(said(served)["why"])
            store.gate.permit()
            until(lambda: store.image("disk")[:512] == b"r" * 512)


def test_what_cannot_be_deleted_is_no_hindrance_and_is_deleted_later(
    store: Bucket, pushed: bytes, tmp_path: Path
) -> None:
    keeping = f"{dying_helper.__file__}:KeepingHelper"
    with serve(disk_of(store, tmp_path, type=keeping)) as served, served.guest() as guest:
        for number in range(3):
            Block(guest).write(0, bytes([number + 1]) * 512)
            write_back(served)
        served.wait_for_line("what is not needed any more stays: 403 Forbidden")
    obsolete = store.manifest("disk")["obsolete"]
    assert len(obsolete) == 3
    with serve(disk_of(store, tmp_path)) as served, served.guest() as guest:
        Block(guest).write(0, b"4" * 512)
        write_back(served)
    assert not {f"disk/{name}" for name in obsolete} & set(store.names())
    assert store.image("disk") == b"4" * 512 + pushed[512:]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"url": "s3://images/golden.raw"}, "write_back"),
        ({"image": None}, "write_back"),
        ({"readonly": True}, "write_back"),
        ({"url": "https://127.0.0.1/disk/"}, "url"),
    ],
)
def test_what_cannot_be_written_back_is_refused(
    tmp_path: Path, options: dict[str, Any], field: str
) -> None:
    image = str(tmp_path / "cache.overlay")
    wanted = {"url": "s3://images/disk/", "image": image, "write_back": NEVER, **options}
    assert field in {name for name, _ in BlkOptions(**wanted).problems()}

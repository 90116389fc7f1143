"""The real-time clock with the built-in driver: what its clocks show, and when alarms expire."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.devices.clocks import Mortal, Told
from tests.devices.inline import Inline
from vuproc.device_file.check import load
from vuproc.devices.rtc import ALARM, MAX_READING, REQUEST, Rtc
from vuproc.devices.rtc_alarms import Alarms, KeptAlarms
from vuproc.devices.rtc_course import NORMAL, Course, Kept, S, begin
from vuproc.devices.rtc_options import RtcOptions
from vuproc.devices.rtc_smear import Leap, smeared
from vuproc.errors import ConfigErrors
from vuproc.spec.rtc import (
    FLAG_ALARM_CAP,
    FLAG_ALARM_ENABLED,
    NOTIF_ALARM,
    NOTIFICATION,
    REQUESTS,
    RESPONSE_HEAD,
    RESPONSES,
    ClockType,
    HardwareCounter,
    RtcFeature,
    RtcRequest,
    RtcStatus,
    Smearing,
)
from vuproc.testing import Guest, NoCompletion, Refused, Served, serve
from vuproc.workers import state_bytes

pytestmark = pytest.mark.timeout(90)

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
UTC, MONOTONIC = 0, 1
Y2038 = 2_147_483_647
FAR = 1 << 62
LEAP_DAY_END = 1_483_228_800
"""The end of 2016, which had a leap second."""


def rtc(**options: Any) -> AbstractContextManager[Served]:
    return serve({"type": "rtc", **options})


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with rtc() as served:
        yield served


@contextmanager
def guest_of(served: Served, **how: Any) -> Iterator[Guest]:
    """A guest that leaves no alarm to the next."""
    with served.guest(queues=2, **how) as guest:
        yield guest
        for clock in (UTC, MONOTONIC):
            set_alarm(guest, 0, clock, flags=0)


def ask(guest: Guest, kind: RtcRequest, **fields: int) -> tuple[RtcStatus, dict[str, Any]]:
    """The status and the fields of the answer."""
    request, response = REQUESTS[kind], RESPONSES[kind]
    done = guest.do(REQUEST, [request.pack(msg_type=kind, **fields)], [response.size])
    status = RtcStatus(RESPONSE_HEAD.unpack(done.content)["status"])
    if status is not RtcStatus.OK:
        assert done.written == RESPONSE_HEAD.size
        return status, {}
    # Linux takes an answer of any other length for an error.
    assert done.written == response.size
    return status, response.unpack(done.content)


def read(guest: Guest, clock: int = UTC) -> int:
    status, fields = ask(guest, RtcRequest.READ, clock_id=clock)
    assert status is RtcStatus.OK
    return int(fields["clock_reading"])


def set_alarm(guest: Guest, when: int, clock: int = UTC, flags: int = FLAG_ALARM_ENABLED) -> None:
    fields = {"alarm_time": when, "clock_id": clock, "flags": flags}
    assert ask(guest, RtcRequest.SET_ALARM, **fields)[0] is RtcStatus.OK


def alarm(guest: Guest, clock: int = UTC) -> tuple[int, bool]:
    """The time that is set, and whether it is enabled."""
    _, fields = ask(guest, RtcRequest.READ_ALARM, clock_id=clock)
    return fields["alarm_time"], bool(fields["flags"])


def notified(guest: Guest) -> int:
    """The clock of the next notification."""
    fields = NOTIFICATION.unpack(guest.receive(ALARM))
    assert fields["msg_type"] == NOTIF_ALARM
    return int(fields["clock_id"])


@LAYOUTS
def test_the_driver_finds_the_clocks_and_what_they_can_do(packed: bool) -> None:
    options = {"clocks": ["tai", "utc", "monotonic", "smeared"], "tai_offset": 37}
    kinds = (ClockType.TAI, ClockType.UTC, ClockType.MONOTONIC, ClockType.UTC_SMEARED)
    with rtc(**options) as served, served.guest(queues=2, packed=packed) as guest:
        assert ask(guest, RtcRequest.CFG)[1]["num_clocks"] == 4
        for clock, kind in enumerate(kinds):
            _, found = ask(guest, RtcRequest.CLOCK_CAP, clock_id=clock)
            smearing = Smearing.UTC_SLS if kind is ClockType.UTC_SMEARED else Smearing.UNSPECIFIED
            assert (found["type"], found["leap_second_smearing"]) == (kind, smearing)
            assert found["flags"] == FLAG_ALARM_CAP
        before = time.time_ns()
        tai, utc = read(guest, 0), read(guest, 1)
        assert before <= utc <= time.time_ns()
        assert 37 * S <= tai - before <= 37 * S + time.time_ns() - before
        assert read(guest, 2) < read(guest, 2)
        # Unless this is the last quarter of an hour before a leap second.
        assert before <= read(guest, 3) <= time.time_ns()


def test_a_smeared_clock_does_not_step_over_a_leap_second() -> None:
    midnight = LEAP_DAY_END * S
    passing = [second * S // 4 for second in range(-4400, 4400)]

    def shown(at: int, length: int) -> int:
        """When so much has passed since midnight, or since the leap second before it."""
        if at >= 0:
            return smeared(midnight + at, Leap.NONE)
        if length < 0:
            return smeared(midnight - S + at, Leap.DELETED)
        if at >= -S:
            return smeared(midnight + at, Leap.UNDER_WAY)
        return smeared(midnight + S + at, Leap.INSERTED)

    for length in (1, -1):
        readings = [shown(at, length) for at in passing]
        steps = {after - before for before, after in itertools.pairwise(readings)}
        assert steps == {S // 4, S // 4 * (1000 - length) // 1000}
        assert readings[passing.index(0)] == midnight
        assert readings[passing.index(-1000 * S)] == midnight - (1000 - length) * S
        assert readings[0] == midnight - 1100 * S + length * S


def test_a_smeared_clock_with_a_time_of_its_own_is_utc() -> None:
    with rtc(clocks=["smeared", "utc"], epoch=Y2038) as served, served.guest(queues=2) as guest:
        first = read(guest, 0)
        assert Y2038 * S <= first <= read(guest, 1) <= read(guest, 0) < (Y2038 + 60) * S


def test_no_counter_of_the_guests_is_known(plain: Served) -> None:
    with plain.guest(queues=2) as guest:
        for counter in (HardwareCounter.ARM_VCT, HardwareCounter.X86_TSC):
            status, fields = ask(guest, RtcRequest.CROSS_CAP, clock_id=UTC, hw_counter=counter)
            assert (status, fields["flags"]) == (RtcStatus.OK, 0)
            status, _ = ask(guest, RtcRequest.READ_CROSS, clock_id=UTC, hw_counter=counter)
            assert status is RtcStatus.EOPNOTSUPP
        for unknown, wanted in ((7, RtcStatus.EOPNOTSUPP), (0xFF, RtcStatus.EINVAL)):
            for kind in (RtcRequest.CROSS_CAP, RtcRequest.READ_CROSS):
                assert ask(guest, kind, clock_id=UTC, hw_counter=unknown)[0] is wanted


def test_a_clock_begins_at_its_epoch_and_goes_on_whoever_dies() -> None:
    device = {"type": "rtc", "epoch": "2038-01-19T03:14:07Z", "offset": -0.5}
    began = time.monotonic_ns()
    with serve(device, arguments=["--supervised"]) as served, served.guest(queues=2) as guest:

        def shown() -> int:
            """Nanoseconds since the epoch, which are no more than have passed."""
            reading = read(guest) - Y2038 * S + S // 2
            assert 0 <= reading <= time.monotonic_ns() - began
            return reading

        set_alarm(guest, FAR)
        first, monotonic = shown(), read(guest, MONOTONIC)
        served.wait_worker(other_than=served.kill_worker())
        assert first < (second := shown())
        before = served.status().pid
        os.kill(before, signal.SIGKILL)
        assert second < shown()
        assert monotonic < read(guest, MONOTONIC)
        assert alarm(guest) == (FAR, True)
        assert served.status().pid != before


def test_the_offset_is_set_while_the_guest_runs_and_wakes_it(tmp_path: Path) -> None:
    def describe(offset: float) -> Path:
        file = tmp_path / "clock.yaml"
        text = f"socket: ./clock.sock\ndevice: {{type: rtc, epoch: {Y2038}, offset: {offset}}}\n"
        file.write_text(text)
        return file

    with serve(describe(0)) as served, served.guest(queues=2) as guest:

        def travel(offset: float) -> None:
            before = served.wait_worker()
            describe(offset)
            served.reload()
            served.wait_worker(other_than=before)

        guest.keep_filled(ALARM, count=4, size=NOTIFICATION.size)
        set_alarm(guest, (Y2038 + 1000) * S)
        travel(1000.5)
        assert notified(guest) == UTC
        assert read(guest) > (Y2038 + 1000) * S
        # Back again, it waits for the same time once more.
        travel(900.25)
        assert read(guest) < (Y2038 + 1000) * S
        travel(2000)
        assert notified(guest) == UTC
        assert alarm(guest) == ((Y2038 + 1000) * S, True)


@LAYOUTS
def test_an_alarm_expires_at_its_time(plain: Served, packed: bool) -> None:
    with guest_of(plain, packed=packed) as guest:
        guest.keep_filled(ALARM, count=8, size=64)
        when = read(guest, MONOTONIC) + S // 10
        set_alarm(guest, when, MONOTONIC)
        assert notified(guest) == MONOTONIC
        assert read(guest, MONOTONIC) >= when
        # One that has passed expires at once, and again each time that it is enabled.
        set_alarm(guest, 1)
        assert notified(guest) == UTC
        fields = {"clock_id": UTC, "flags": FLAG_ALARM_ENABLED}
        assert ask(guest, RtcRequest.SET_ALARM_ENABLED, **fields)[0] is RtcStatus.OK
        assert notified(guest) == UTC
        assert alarm(guest) == (1, True)
        assert ask(guest, RtcRequest.SET_ALARM_ENABLED, clock_id=UTC)[0] is RtcStatus.OK
        assert alarm(guest) == (1, False)
        with pytest.raises(NoCompletion):
            guest.receive(ALARM, timeout_s=0.05)


def test_an_alarm_outlives_its_worker_and_waits_for_a_buffer(plain: Served) -> None:
    with guest_of(plain) as guest:
        when = read(guest, MONOTONIC) + S // 5
        set_alarm(guest, when, MONOTONIC)
        set_alarm(guest, 5, UTC)
        plain.wait_worker(other_than=plain.kill_worker())
        # A buffer without room for a notification comes back as it is.
        assert guest.do(ALARM, in_=[NOTIFICATION.size - 1]).written == 0
        guest.keep_filled(ALARM, count=2, size=NOTIFICATION.size)
        assert [notified(guest), notified(guest)] == [UTC, MONOTONIC]
        assert read(guest, MONOTONIC) >= when


def test_the_driver_is_told_once_wherever_a_worker_dies(tmp_path: Path) -> None:
    wish = tmp_path / "wish"
    with serve(Mortal, wish=str(wish)) as served, served.guest(queues=2) as guest:
        guest.keep_filled(ALARM, count=4, size=NOTIFICATION.size)
        for when in ("finished", "published", "told"):
            set_alarm(guest, FAR, MONOTONIC)
            before = served.wait_worker()
            wish.write_text(when)
            set_alarm(guest, read(guest, MONOTONIC) + S // 20, MONOTONIC)
            assert notified(guest) == MONOTONIC
            served.wait_worker(other_than=before)
            assert not wish.exists()
            # The next worker is at work, and has nothing to tell.
            assert alarm(guest, MONOTONIC)[1]
            with pytest.raises(NoCompletion):
                guest.receive(ALARM, timeout_s=0.05)


def test_an_alarm_that_is_set_stays_set_over_a_reset(plain: Served) -> None:
    with guest_of(plain) as guest:
        set_alarm(guest, FAR, MONOTONIC)
        set_alarm(guest, 5, UTC)
        guest.reset()
        assert alarm(guest, MONOTONIC) == (FAR, True)
        guest.keep_filled(ALARM, count=2, size=NOTIFICATION.size)
        assert notified(guest) == UTC


def saved(guest: Guest) -> bytes:
    """Its state, as of a guest that is paused to be migrated."""
    for queue in (REQUEST, ALARM):
        guest.stop_queue(queue)
    return guest.front_end.save_state()


def test_a_migration_takes_time_and_alarms_along() -> None:
    epoch, late = 1_000_000 * S, 2_000_000 * S
    with rtc(epoch=epoch // S) as one, one.guest(queues=2) as guest:
        set_alarm(guest, late, UTC)
        soon = read(guest, MONOTONIC) + S // 4
        set_alarm(guest, soon, MONOTONIC)
        before = read(guest)
        state = saved(guest)
    with rtc(epoch=epoch // S) as two, two.guest(queues=2, start=False) as guest:
        guest.setup()
        guest.front_end.load_state(state)
        for queue in (REQUEST, ALARM):
            guest.start_queue(queue)
        guest.keep_filled(ALARM, count=2, size=NOTIFICATION.size)
        assert notified(guest) == MONOTONIC
        assert read(guest, MONOTONIC) >= soon and before < read(guest) < late
        assert alarm(guest, UTC) == (late, True) and alarm(guest, MONOTONIC) == (soon, True)
        with pytest.raises(NoCompletion):
            guest.receive(ALARM, timeout_s=0.05)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state[:-1], "other clocks"),
        (lambda state: b"\1" + state[1:], "other clocks"),
        (lambda state: state[:32] + b"\7" + state[33:], "other clocks"),
        (lambda state: state[:33] + b"\7" + state[34:], "7 is not a valid AlarmState"),
        (lambda state: state[:23] + b"\x7f" + state[24:], "makes no sense"),
    ],
    ids=["short", "count", "type", "alarm", "time"],
)
def test_a_state_that_makes_no_sense_is_refused(
    plain: Served, change: Callable[[bytes], bytes], reason: str
) -> None:
    with guest_of(plain) as guest:
        set_alarm(guest, FAR, MONOTONIC)
        state = saved(guest)
        kind = state_bytes.kind_of(Rtc(RtcOptions()))
        content, _version = state_bytes.unpack(kind, state)
        before = len(plain.lines)
        with pytest.raises(Refused):
            guest.front_end.load_state(state_bytes.pack(kind, change(content)))
        assert reason in plain.wait_for_line("load_state: ValueError", after=before)
        for queue in (REQUEST, ALARM):
            guest.start_queue(queue)
        assert alarm(guest, MONOTONIC) == (FAR, True)


def test_a_class_says_what_time_it_is(tmp_path: Path) -> None:
    told = tmp_path / "now"

    def tell(what: str) -> None:
        (tmp_path / "next").write_text(what)
        os.replace(tmp_path / "next", told)

    tell("100")
    with serve(Told, told=str(told)) as served, served.guest(queues=2) as guest:
        guest.keep_filled(ALARM, count=2, size=NOTIFICATION.size)
        assert read(guest) == 100
        set_alarm(guest, 200)
        tell("199")
        assert read(guest) == 199
        # It is looked at each second, and goes on being so when that fails.
        tell("what?")
        assert ask(guest, RtcRequest.READ, clock_id=UTC)[0] is RtcStatus.EIO
        served.wait_for_line("clock_changed")
        tell("200")
        assert notified(guest) == UTC
        tell("-7")
        assert read(guest) == 0
        tell(str(1 << 70))
        assert read(guest) == MAX_READING
        assert served.status().queues[REQUEST].restarts == 0


def test_who_knows_of_no_alarms_hears_of_none(plain: Served) -> None:
    with plain.guest(queues=1, without=RtcFeature.ALARM) as guest:
        assert ask(guest, RtcRequest.CLOCK_CAP, clock_id=UTC)[1]["flags"] == 0
        for kind in (
            RtcRequest.READ_ALARM,
            RtcRequest.SET_ALARM,
            RtcRequest.SET_ALARM_ENABLED,
        ):
            assert ask(guest, kind, clock_id=UTC)[0] is RtcStatus.EOPNOTSUPP


READ = REQUESTS[RtcRequest.READ].pack(msg_type=RtcRequest.READ)
ROOM = RESPONSES[RtcRequest.READ].size


@pytest.mark.parametrize(
    ("data", "room", "status", "written"),
    [
        (b"", 16, RtcStatus.EINVAL, 8),
        (READ[:7], 16, RtcStatus.EINVAL, 8),
        (READ[:15], 16, RtcStatus.EINVAL, 8),
        (READ, 15, RtcStatus.EINVAL, 8),
        (READ, 3, RtcStatus.EINVAL, 3),
        (READ, 1, RtcStatus.EINVAL, 1),
        (READ + bytes(100_000), 16, RtcStatus.OK, 16),
        (READ, 100_000, RtcStatus.OK, 16),
        (b"\x03" + READ[1:], 16, RtcStatus.EOPNOTSUPP, 8),
        (b"\xff\xff" + READ[2:], 16, RtcStatus.EOPNOTSUPP, 8),
        (READ[:8] + b"\x02" + READ[9:], 16, RtcStatus.ENODEV, 8),
        (READ[:8] + b"\xff\xff" + READ[10:], 16, RtcStatus.ENODEV, 8),
        (READ[:7] + b"\1" + READ[8:], 16, RtcStatus.EINVAL, 8),
        (READ[:15] + b"\1", 16, RtcStatus.EINVAL, 8),
    ],
)
def test_c46_bad_requests_have_the_status_of_their_fault(
    data: bytes, room: int, status: RtcStatus, written: int
) -> None:
    inline = Inline(Rtc(RtcOptions()))
    try:
        done = inline.chain([data], [room])
        assert (done.content[0], done.written) == (status, written)
        assert inline.chain([data]).written == 0
        assert inline.errors == []
    finally:
        inline.close()


def test_flags_that_nobody_knows_set_no_alarm(plain: Served) -> None:
    with guest_of(plain) as guest:
        set_alarm(guest, 9, flags=0)
        for kind in (RtcRequest.SET_ALARM, RtcRequest.SET_ALARM_ENABLED):
            assert ask(guest, kind, clock_id=UTC, flags=2)[0] is RtcStatus.EINVAL
        assert alarm(guest) == (9, False)


def test_a_slew_changes_without_a_step() -> None:
    kept = Kept()
    begin(kept, None, NORMAL)
    real = time.time_ns()
    assert Course(kept, offset=0, rate=NORMAL, tai_offset=None).utc() - real < S
    fast = Course(kept, offset=0, rate=1000 * NORMAL, tai_offset=None)
    before, began = fast.utc(), time.monotonic_ns()
    while time.monotonic_ns() - began < 2_000_000:
        pass
    passed = fast.utc() - before
    assert passed >= 1000 * 2_000_000
    assert fast.monotonic() >= passed
    halted = Course(kept, offset=5, rate=0, tai_offset=10)
    assert before + passed <= (utc := halted.utc())
    assert halted.monotonic() == halted.monotonic()
    assert halted.utc() == utc
    assert halted.tai() == utc + 10 * S
    assert kept.current == 0


def test_an_alarm_expires_once_until_its_clock_goes_back() -> None:
    now = [0, 0]
    alarms = Alarms(KeptAlarms(), 2, lambda clock: now[clock])
    assert (alarms.next(), alarms.look()) == (None, [])
    alarms.set(0, 10, True)
    alarms.set(1, 20, True)
    now[:] = [3, 4]
    assert alarms.next() == 7
    now[:] = [10, 19]
    assert alarms.look() == [0]
    alarms.told(0)
    now[:] = [99, 20]
    assert alarms.look() == [1]
    now[:] = [9, 19]
    # The one has gone back before the driver was told, the other afterwards.
    assert alarms.look() == []
    assert alarms.next() == 1
    now[:] = [10, 20]
    assert alarms.look() == [0, 1]
    alarms.enable(1, False)
    assert alarms.look() == [0]
    alarms.told(0)
    alarms.again()
    assert alarms.look() == [0]
    alarms.set(0, 11, True)
    assert alarms.look() == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"clocks": []}, "clocks"),
        ({"clocks": ["utc", "utc"]}, "each clock at most once"),
        ({"clocks": ["ntp"]}, "expected utc, tai, monotonic or smeared"),
        ({"epoch": "yesterday"}, "no time such as 2038-01-19T03:14:00Z"),
        ({"epoch": "1969-12-31T23:59:59Z"}, "not between 1970 and 2100"),
        ({"epoch": -1}, "epoch"),
        ({"slew": -1_000_001}, "slew"),
        ({"queues": 1}, "queues"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    file = tmp_path / "clock.yaml"
    file.write_text(json.dumps({"socket": "s", "device": {"type": "rtc", **options}}))
    with pytest.raises(ConfigErrors, match=reason):
        load(file)


def test_tai_needs_an_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vuproc.devices.rtc_options.system_tai_offset", lambda: 0)
    wanted = "this machine's TAI offset is not set; set tai_offset for tai"
    assert list(RtcOptions(clocks=("tai",)).problems()) == [("clocks", wanted)]
    assert list(RtcOptions(clocks=("tai",), tai_offset=37).problems()) == []
    monkeypatch.setattr("vuproc.devices.rtc_options.system_tai_offset", lambda: 37)
    assert list(RtcOptions(clocks=("tai",)).problems()) == []


@pytest.mark.parametrize(
    ("epoch", "seconds"),
    [
        ("2038-01-19T03:14:07Z", Y2038),
        ("2038-01-19 04:14:07+01:00", Y2038),
        ("1970-01-02", 86_400),
        (12, 12),
    ],
)
def test_an_epoch_is_a_time_or_a_number(epoch: str | int, seconds: int) -> None:
    assert RtcOptions(epoch=epoch).epoch_ns() == seconds * S


def test_nobody_goes_on_with_the_time_of_other_clocks() -> None:
    options = [RtcOptions(), RtcOptions(epoch=1), RtcOptions(clocks=("utc",))]
    for one in options:
        left = Rtc(one).shared_files()
        for other in (*options, RtcOptions(offset=9.0, slew=1.0)):
            same = (one.clocks, one.epoch) == (other.clocks, other.epoch)
            assert Rtc(other).goes_on_with(left) == same
        for file in left.values():
            file.close()

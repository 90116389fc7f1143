"""The systemd units agree with the program."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

from vuproc.handover import sd_notify
from vuproc.handover.keeper import fleet
from vuproc.handover.keeper.descriptors import MAX_STORED
from vuproc.handover.keeper.keeper import WATCHDOG_S

UNITS = Path(__file__).parent.parent / "deploy" / "systemd"


def unit(name: str) -> ConfigParser:
    parser = ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


def test_the_service_keeps_what_the_keeper_keeps() -> None:
    service = unit("vuproc@.service")["Service"]
    assert service["Type"] == "notify"
    assert int(service["FileDescriptorStoreMax"]) == sd_notify.MAX_INHERITED == MAX_STORED
    assert int(service["LimitNOFILE"]) > 2 * MAX_STORED
    assert float(service["WatchdogSec"]) == WATCHDOG_S
    assert service["FileDescriptorStorePreserve"] == "restart"


def test_one_dead_process_does_not_stop_the_device() -> None:
    service = unit("vuproc@.service")["Service"]
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"
    assert service["OOMPolicy"] == "continue"


def test_both_are_told_of_the_same_device_file() -> None:
    service = unit("vuproc@.service")["Service"]
    assert service["ExecStart"] == "/usr/bin/vuproc run /etc/vuproc/%i.yaml"
    assert unit("vuproc@.socket")["Socket"]["ListenStream"] == "/run/vuproc/%i.sock"


def test_the_service_of_all_devices_is_told_of_their_folder() -> None:
    one, many = unit("vuproc@.service")["Service"], unit("vuproc.service")["Service"]
    assert many["ExecStart"] == "/usr/bin/vuproc run /etc/vuproc"
    assert int(many["LimitNOFILE"]) > fleet.FILES
    # The parent is the keeper: systemd keeps nothing.
    assert "FileDescriptorStoreMax" not in many
    own = {"ExecStart", "LimitNOFILE", "FileDescriptorStoreMax", "FileDescriptorStorePreserve"}
    assert {key: many[key] for key in many if key not in own} == {
        key: one[key] for key in one if key not in own
    }

"""The systemd units agree with the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from vuproc.cli.arguments import EXIT_USAGE
from vuproc.handover import sd_notify
from vuproc.handover.keeper import fleet
from vuproc.handover.keeper.descriptors import MAX_STORED
from vuproc.handover.keeper.keeper import EXIT_MAKES_WAY, WATCHDOG_S

UNITS = Path(__file__).parent.parent / "deploy" / "systemd"
EXPOSURE_BELOW = 2.0
PROGRAM_S = 30.0


def unit(name: str) -> ConfigParser:
    # A key may come several times; of such a key the last is had.
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return parser


def test_the_service_keeps_what_the_keeper_keeps() -> None:
    service = unit("vuproc@.service")["Service"]
    assert service["Type"] == "notify"
    assert int(service["FileDescriptorStoreMax"]) == sd_notify.MAX_INHERITED == MAX_STORED
    assert int(service["LimitNOFILE"]) > 2 * MAX_STORED
    assert float(service["WatchdogSec"]) == WATCHDOG_S
    # What systemd has by default from 254 on, and before that always; there the key is unknown.
    assert "FileDescriptorStorePreserve" not in service


def test_one_dead_process_does_not_stop_the_device() -> None:
    service = unit("vuproc@.service")["Service"]
    assert service["Restart"] == "on-failure"
    assert int(service["RestartForceExitStatus"]) == EXIT_MAKES_WAY
    # Or the signal itself, if it comes before Python has its handlers.
    assert service["SuccessExitStatus"].split() == [str(EXIT_MAKES_WAY), "SIGUSR1"]
    assert service["RestartKillSignal"] == "SIGUSR1"
    assert int(service["RestartPreventExitStatus"]) == EXIT_USAGE
    assert service["KillMode"] == "mixed"
    assert service["OOMPolicy"] == "continue"


def test_both_are_told_of_the_same_device_file() -> None:
    service = unit("vuproc@.service")["Service"]
    assert service["ExecStart"] == "/usr/bin/vuproc run /etc/vuproc/%i.yaml"
    assert service["ExecReload"] == "/usr/bin/vuproc reload /etc/vuproc/%i.yaml"
    assert unit("vuproc@.socket")["Socket"]["ListenStream"] == "/run/vuproc/%i.sock"


def test_the_service_of_all_devices_is_told_of_their_folder() -> None:
    one, many = unit("vuproc@.service")["Service"], unit("vuproc.service")["Service"]
    assert many["ExecStart"] == "/usr/bin/vuproc run /etc/vuproc"
    assert int(many["LimitNOFILE"]) > fleet.FILES
    assert many["ExecReload"] == "/usr/bin/vuproc reload /etc/vuproc"
    # The parent is the keeper: systemd keeps nothing, and nothing outlives a restart.
    assert not {key for key in many if "FileDescriptor" in key or "ExitStatus" in key}
    # Its address is an abstract socket, of the machine's network.
    own = {"ExecStart", "ExecReload", "LimitNOFILE", "PrivateNetwork", "FileDescriptorStoreMax"}
    own |= {"RestartKillSignal"} | {key for key in one if key.endswith("ExitStatus")}
    assert {key: many[key] for key in many if key not in own} == {
        key: one[key] for key in one if key not in own
    }


def test_all_of_them_start_and_stop_with_the_target() -> None:
    for name in ("vuproc@.service", "vuproc@.socket", "vuproc.service"):
        parsed = unit(name)
        assert parsed["Unit"]["PartOf"] == "vuproc.target"
        assert "vuproc.target" in parsed["Install"]["WantedBy"].split()
    assert unit("vuproc.target")["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize("name", ["vuproc@.service", "vuproc.service"])
def test_systemd_says_that_a_service_is_little_exposed(name: str) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze on this machine (apt-get install systemd)")
    command = [program, "security", "--no-pager", "--offline=true", "--threshold=20"]
    done = subprocess.run(
        [*command, UNITS / name], capture_output=True, text=True, timeout=PROGRAM_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found is not None and float(found[1]) < EXPOSURE_BELOW, done.stdout
    assert not done.stderr, done.stderr

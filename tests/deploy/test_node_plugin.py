"""The node plugin of deploy/kubernetes at work with `vuproc run FOLDER`, called as kubelet calls
it; of the long form.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from vuproc.testing.block import Block
from vuproc.testing.guest import Guest

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
BOUND_S = 60.0


class Calls:
    """A CSI plugin to call."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(
        self, method: str, message: str = "Empty", reply: str = "Empty", **fields: Any
    ) -> tuple[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, message, fields, reply]) + "\n")
        self._process.stdin.flush()
        code, said = json.loads(self._process.stdout.readline())
        return code, said

    def publish(self, volume: str, target: Path, **more: Any) -> tuple[str, Any]:
        readonly = more.pop("readonly", False)
        access = more.pop("access", "mount")
        return self.ask(
            "Node/NodePublishVolume",
            "NodePublishVolumeRequest",
            volume_id=volume,
            target_path=str(target),
            volume_capability={access: {}, "access_mode": {"mode": 1}},
            readonly=readonly,
            volume_context=[{"key": key, "value": value} for key, value in more.items()],
        )

    def unpublish(self, volume: str, target: Path) -> tuple[str, Any]:
        return self.ask(
            "Node/NodeUnpublishVolume",
            "NodeUnpublishVolumeRequest",
            volume_id=volume,
            target_path=str(target),
        )


@contextmanager
def program(*command: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command],
        text=True,
        env={**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{FOLDER.parents[1]}"},
        **options,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=BOUND_S)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Calls]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    for name in ("devices", "volumes", "images"):
        (tmp_path / name).mkdir()
    places = [f"--{name}={tmp_path / name}" for name in ("devices", "volumes", "images")]
    endpoint = tmp_path / "csi.sock"
    none: dict[str, Any] = {"stdin": subprocess.DEVNULL}
    with ExitStack() as stack:
        stack.callback(unmounted, tmp_path)
        stack.enter_context(program("-m", "vuproc", "run", tmp_path / "devices", **none))
        arguments = [f"--endpoint={endpoint}", *places, f"--group={os.getegid()}", "--node-id=n1"]
        stack.enter_context(program(FOLDER / "node_plugin.py", *arguments, **none))
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        script = Path(__file__).with_name("csi_calls.py")
        yield Calls(stack.enter_context(program(script, endpoint, **pipes)))


def unmounted(folder: Path) -> None:
    """What a failed test has left mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{folder}/"):
            subprocess.run(["umount", line.split()[1]], check=True)


@pytest.mark.skipif(os.environ.get("VUPROC_LONG", "") in ("", "0"), reason="of the long form")
def test_a_volume_is_a_folder_with_a_socket(node: Calls, tmp_path: Path) -> None:
    (tmp_path / "images" / "web1.raw").write_bytes(b"x" * (1 << 20))
    target = tmp_path / "pods" / "web1" / "mount"
    info = node.ask("Identity/GetPluginInfo", reply="GetPluginInfoResponse")
    assert info[0] == "OK" and info[1]["name"] == "vuproc.csi.example.org"
    assert node.ask("Identity/Probe", reply="ProbeResponse") == ("OK", {"ready": {"value": True}})
    assert node.ask("Node/NodeGetInfo", reply="NodeGetInfoResponse") == ("OK", {"nodeId": "n1"})
    attributes = {"image": "web1.raw", "queues": "2"}
    for _ in range(2):
        assert node.publish("web1", target, **attributes) == ("OK", {})
    with Guest(target / "disk.sock", queues=2) as guest:
        Block(guest).write(0, b"y" * 512)
        assert Block(guest).read(0, 1024, queue=1) == b"y" * 512 + b"x" * 512
    assert (target / "disk.sock").stat().st_mode & 0o777 == 0o660
    other = tmp_path / "pods" / "web2" / "mount"
    assert node.publish("web1", target, image="web1.raw")[0] == "ALREADY_EXISTS"
    assert node.publish("web1", other, **attributes)[0] == "FAILED_PRECONDITION"
    assert node.unpublish("web1", other) == ("OK", {})
    assert (target / "disk.sock").is_socket()
    for _ in range(2):
        assert node.unpublish("web1", target) == ("OK", {})
    assert not target.exists()
    assert [list((tmp_path / name).iterdir()) for name in ("devices", "volumes")] == [[], []]
    # Nobody has the image any more.
    assert node.publish("again", other, **attributes, readonly=True) == ("OK", {})
    assert node.unpublish("again", other) == ("OK", {})
    for volume, access, more, text in (
        ("web3", "mount", {"image": "../../etc/passwd"}, "is not below"),
        ("web3", "mount", {"image": "absent.raw"}, "absent.raw"),
        ("web3", "mount", {"ram": "1GiB"}, "is no attribute"),
        ("web3", "mount", {"image": "web1.raw", "queues": "many"}, "is no attribute"),
        ("web3", "block", {"image": "web1.raw"}, "volumeMode: Filesystem"),
        ("../x", "mount", {"image": "web1.raw"}, "is no name for a volume"),
    ):
        code, said = node.publish(volume, target, access=access, **more)
        assert code == "INVALID_ARGUMENT" and text in said
    assert list((tmp_path / "devices").iterdir()) == []

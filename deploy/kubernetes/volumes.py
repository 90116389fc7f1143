"""Disks of a node: a volume is a device file in the folder that `vuproc run FOLDER` serves, and a
folder with its socket, which is mounted where Kubernetes wants the volume.

It is all in files, so that whoever is started anew goes on where the last one was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOCKET = "disk.sock"
"""The socket's name in the root of the volume."""
START_S = 30.0
"""Seconds that vuproc has to take up a device file, or to let go of one."""
CHECK_S = 60.0
LOOK_S = 0.05
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TEXTS = ("serial", "cache", "rbd", "rbd_user")
NUMBERS = ("queues", "queue_size", "block_size")
"""Attributes of a volume that are options of the disk as they are; `image` is one, too."""


_ESCAPE = re.compile(r"\\([0-7]{3})")


class VolumeRefused(Exception):
    """This volume cannot be had so: what is asked for is wrong."""


class VolumeTaken(Exception):
    """It is published already, in another way or elsewhere."""


class VolumeElsewhere(Exception):
    """It is published at another place of this node, and one guest has it at a time."""


class VolumeUnavailable(Exception):
    """vuproc does not serve it; asking again may help."""


@dataclass(frozen=True)
class Node:
    """Where things are on a node, and who connects to the sockets."""

    devices: Path
    """The folder that vuproc serves."""
    volumes: Path
    """Where volumes have their folders; on a tmpfs, so that a new boot begins with none."""
    images: Path
    """What the images of volumes must be below."""
    group: int = 107
    """Who may connect: the group of QEMU in KubeVirt's virt-launcher."""
    rbd_conf: str = ""

    def publish(
        self, volume: str, target: Path, attributes: Mapping[str, str], *, readonly: bool
    ) -> None:
        """Serve the volume, and have its folder at `target`. A second time nothing happens. Raises
        VolumeRefused, VolumeTaken, VolumeElsewhere, VolumeUnavailable, OSError.
        """
        folder, file = self._places(volume)
        text = self._device_file(folder, attributes, readonly)
        place = self._place(volume)
        if file.exists():
            if place.exists() and place.read_text() != str(target):
                raise VolumeElsewhere(f"volume {volume} is published at {place.read_text()}")
            if file.read_text() != text:
                raise VolumeTaken(f"volume {volume} is published with other attributes")
            if _is_mounted(target, folder):
                return
        folder.mkdir(parents=True, exist_ok=True)
        # The group reaches the socket, and nobody lists or changes what is in there.
        os.chown(folder, -1, self.group)
        folder.chmod(0o710)
        place.write_text(str(target))
        self._write(file, text)
        try:
            self._await(folder / SOCKET, volume)
        except VolumeUnavailable:
            # The next attempt may be another, with attributes that have been put right.
            file.unlink(missing_ok=True)
            place.unlink(missing_ok=True)
            raise
        target.mkdir(parents=True, exist_ok=True)
        if not _is_mounted(target, folder):
            _mount("--bind", str(folder), str(target))

    def unpublish(self, volume: str, target: Path) -> None:
        """The volume is at `target` no more, and not served. A second time nothing happens."""
        folder, file = self._places(volume)
        while _is_mount(target):
            _run("umount", str(target))
        if target.exists():
            target.rmdir()
        place = self._place(volume)
        if place.exists() and place.read_text() != str(target):
            return
        file.unlink(missing_ok=True)
        deadline = time.monotonic() + START_S
        while (folder / SOCKET).exists():
            if time.monotonic() > deadline:
                raise VolumeUnavailable(f"vuproc has not ended volume {volume}")
            time.sleep(LOOK_S)
        if folder.exists():
            shutil.rmtree(folder)
        place.unlink(missing_ok=True)

    def _places(self, volume: str) -> tuple[Path, Path]:
        if not _ID.fullmatch(volume):
            raise VolumeRefused(f"{volume!r} is no name for a volume: letters, digits and ._-")
        return self.volumes / volume, self.devices / f"{volume}.yaml"

    def _place(self, volume: str) -> Path:
        """What says where it is published; vuproc passes over names with a dot."""
        return self.devices / f".{volume}.target"

    def _device_file(self, folder: Path, attributes: Mapping[str, str], readonly: bool) -> str:
        """JSON is YAML, too, in which no text of an attribute can mean anything else."""
        device: dict[str, Any] = {"type": "blk"}
        for name, value in attributes.items():
            if "/" in name:
                continue  # of Kubernetes itself: csi.storage.k8s.io/...
            if name == "image":
                device["image"] = self._image(value)
            elif name in TEXTS:
                device[name] = value
            elif name in NUMBERS and value.isascii() and value.isdecimal():
                device[name] = int(value)
            else:
                raise VolumeRefused(f"{name}: {value!r} is no attribute of a volume")
        if "rbd" in device and self.rbd_conf:
            device["rbd_conf"] = self.rbd_conf
        if readonly:
            device["readonly"] = True
        socket = {"path": str(folder / SOCKET), "group": self.group, "permissions": "0660"}
        return json.dumps({"socket": socket, "device": device}, indent=1) + "\n"

    def _image(self, value: str) -> str:
        """A link that leads elsewhere does not count."""
        path = (self.images / value).resolve()
        if not path.is_relative_to(self.images.resolve()):
            raise VolumeRefused(f"image: {value!r} is not below {self.images}")
        return str(path)

    def _write(self, file: Path, text: str) -> None:
        """Under a name that vuproc does not look at, until all is right with it."""
        draft = file.with_name(f".{file.stem}.yaml")
        draft.write_text(text)
        checked = subprocess.run(
            [sys.executable, "-m", "vuproc", "check", str(draft)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
        )
        if checked.returncode:
            draft.unlink()
            self._place(file.stem).unlink(missing_ok=True)
            raise VolumeRefused(checked.stderr.strip() or checked.stdout.strip())
        draft.replace(file)

    def _await(self, socket: Path, volume: str) -> None:
        deadline = time.monotonic() + START_S
        while not socket.is_socket():
            if time.monotonic() > deadline:
                raise VolumeUnavailable(f"vuproc does not serve volume {volume}; its log says why")
            time.sleep(LOOK_S)


def _is_mounted(target: Path, folder: Path) -> bool:
    if not _is_mount(target):
        return False
    if not os.path.samefile(target, folder):
        raise VolumeTaken(f"something else is mounted at {target}")
    return True


def _is_mount(target: Path) -> bool:
    """By the kernel's list: a bind mount inside one file system is none to os.path.ismount."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    # proc(5): the mount point is the fifth word, with blanks and the like in octal.
    return any(_ESCAPE.sub(_character, line.split()[4]) == str(target) for line in lines)


def _character(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

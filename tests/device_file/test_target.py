"""Where a device is met: what its file says, however little of it can be read."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vuproc.device_file.target import socket_of
from vuproc.errors import ConfigErrors


@pytest.mark.parametrize(
    "text",
    [
        "socket: ./d.sock\ndevice: {type: blk, image: ./gone}\n",
        "socket: {path: ./d.sock, permissions: 0660}\n",
        "socket:\n  mode: server\n  path: d.sock\n",
        "socket: ./d.sock\ndevice: {type: blk, image\n",
        "socket: ./d.sock\ndevice:\n  type: 'blk\n",
        "socket: ./d.sock\n\tdevice: x\n",
        "device: {socket: wrong, path: [wrong]}\n? {a: [b]}\n: c\nsocket: ./d.sock\n",
        "socket: ./d.sock\nsocket: other\ndevice: !!python/object x\n",
        "socket: ./d.sock\n" + "[" * 100_000,
    ],
)
def test_b8_the_socket_is_found_as_far_as_the_file_can_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.yaml").write_text(text)
    assert socket_of(str(tmp_path / "d.yaml")) == tmp_path / "d.sock"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "path: wrong\nsocket: {}\n",
        "device: {socket: wrong}\n",
        "- socket: wrong\n",
        "socket\n",
        "socket: [wrong]\n",
        "socket: *nothing\n",
        "socket:\n",
        "device: {type: 'blk\nsocket: ./d.sock\n",
        "\0",
    ],
)
def test_b8_a_file_that_does_not_say_it_is_told_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(ConfigErrors, match=r"d\.yaml: .*socket can be given instead"):
        socket_of(str(tmp_path / "d.yaml"))


def test_b8_a_socket_names_itself_also_if_only_that_of_operators_is_there(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert socket_of(str(path)) == path
    path.rename(f"{path}.admin")  # in client mode the VMM makes the other
    assert socket_of(str(path)) == path


def test_b8_what_is_not_there_is_named(tmp_path: Path) -> None:
    for target in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(ConfigErrors, match="there is no such device file or socket") as caught:
            socket_of(str(target))
        assert str(target) in str(caught.value)

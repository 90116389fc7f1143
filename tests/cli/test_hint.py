"""What `vuproc hint` prints for each client."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vuproc.cli.client_names import NAMES
from vuproc.cli.hint import CLIENTS, HintError, hint
from vuproc.cli.hint_target import Target
from vuproc.device_file.check import DeviceFile, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "author.py").write_text(
        "from vuproc import Device\n"
        + "".join(
            f"class D{number}(Device):\n"
            f"    device_id = {number}\n"
            "    def handle(self, request): pass\n"
            for number in (1, 2, 4, 8, 16, 26, 36, 44)
        )
    )
    return tmp_path


def device_file(
    folder: Path, device: str = "type: blk, ram: 64MiB, queues: 4", *, mode: str = "server"
) -> DeviceFile:
    path = folder / "disk.yaml"
    path.write_text(f"socket: {{path: ./disk.sock, mode: {mode}}}\ndevice: {{{device}}}\n")
    return load(path)


def any_for(client: str) -> str:
    """A device that the client can have."""
    return "type: net" if client == "dpdk" else "type: blk, ram: 64MiB"


def author(folder: Path, number: int, queues: int = 1, *, mode: str = "server") -> DeviceFile:
    return device_file(folder, f"type: 'author.py:D{number}', queues: {queues}", mode=mode)


def words(text: str) -> list[str]:
    """The command of a hint, without its comments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return shlex.split(" ".join(line.removesuffix("\\") for line in lines))


def test_qemu_disk(folder: Path) -> None:
    assert words(hint("qemu", device_file(folder), "2G")) == [
        "qemu-system-x86_64",
        *("-m", "2G"),
        *("-object", "memory-backend-memfd,id=mem,size=2G,share=on"),
        *("-numa", "node,memdev=mem"),
        *("-chardev", f"socket,id=vuproc-disk,path={folder}/disk.sock"),
        *("-device", "vhost-user-blk-pci,chardev=vuproc-disk,num-queues=4,queue-size=256"),
    ]


def test_qemu_listens_for_a_client(folder: Path) -> None:
    text = hint("qemu", device_file(folder, mode="client"))
    assert f"socket,id=vuproc-disk,path={folder}/disk.sock,server=on" in words(text)
    assert "reconnect" not in text


def test_qemu_queues_are_no_larger_than_it_can(folder: Path) -> None:
    text = hint("qemu", device_file(folder, "type: blk, ram: 512, queue_size: 32768"))
    assert "num-queues=1,queue-size=1024" in text


@pytest.mark.parametrize(
    ("number", "queues", "expected"),
    [
        (4, 1, "vhost-user-rng-pci,chardev=vuproc-disk"),
        (8, 6, "vhost-user-scsi-pci,chardev=vuproc-disk,num_queues=4,virtqueue_size=256"),
        (
            26,
            3,
            "vhost-user-fs-pci,chardev=vuproc-disk,num-request-queues=2,tag=vuproc-disk,"
            "queue-size=256",
        ),
        (
            1,
            4,
            "virtio-net-pci,netdev=vuproc-disk-net,mq=on,rx_queue_size=256,tx_queue_size=256",
        ),
        (
            1,
            2,
            "virtio-net-pci,netdev=vuproc-disk-net,mq=off,rx_queue_size=256,tx_queue_size=256",
        ),
    ],
)
def test_qemu_other_devices(folder: Path, number: int, queues: int, expected: str) -> None:
    assert words(hint("qemu", author(folder, number, queues)))[-1] == expected


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("qemu", "vhost-user-fs-pci,chardev=vuproc-disk,num-request-queues=2,tag=my,,tag,queue-"),
        ("libvirt", '<target dir="my,tag"/>'),
        ("cloud-hypervisor", 'tag="my,tag",socket='),
        ("uml", "drivers use one request queue."),
        ("uml", "mount -t virtiofs my,tag /mnt"),
    ],
)
def test_a_file_system_has_its_tag(folder: Path, client: str, expected: str) -> None:
    options = f"type: fs, tag: 'my,tag', directory: {folder}, request_queues: 2"
    assert expected in hint(client, device_file(folder, options))


def test_qemu_says_so_where_it_has_no_device(folder: Path) -> None:
    text = hint("qemu", author(folder, 36, 3))
    assert "QEMU has no device of its own for a CAN controller" in text
    assert (
        "vhost-user-test-device-pci,chardev=vuproc-disk,virtio-id=36,num_vqs=3,vq_size=256" in text
    )


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (4, "vhost-user-rng,chardev=vuproc-disk"),
        (26, "vhost-user-fs-device,chardev=vuproc-disk,num-request-queues=1,"),
        (1, "virtio-net-device,netdev=vuproc-disk-net,mq=off,"),
        (36, "vhost-user-test-device,chardev=vuproc-disk,virtio-id=36,"),
    ],
)
def test_c5_microvm_has_no_pci(folder: Path, number: int, expected: str) -> None:
    command = words(hint("qemu-microvm", author(folder, number, 2)))
    assert command[1:3] == ["-M", "microvm,memory-backend=mem"]
    assert command[-1].startswith(expected)
    assert "pci" not in command[-1]


@pytest.mark.parametrize(("client", "where"), [("qemu-microvm", "microvm"), ("qemu", "10.0.13")])
def test_c5_some_qemus_want_queues_of_1024(folder: Path, client: str, where: str) -> None:
    text = hint(client, device_file(folder))
    assert where in text and "needs queue_size: 1024" in text
    large = device_file(folder, "type: blk, ram: 512, queue_size: 1024")
    assert "needs queue_size" not in hint(client, large)


def test_c5_reconnect_is_told_for_old_and_new_versions(folder: Path) -> None:
    for client in ("qemu", "qemu-microvm"):
        text = hint(client, device_file(folder))
        assert ",reconnect-ms=1000" in text
        assert "Before QEMU 9.2: ,reconnect=1" in text
        chardev = next(word for word in words(text) if word.startswith("socket,"))
        assert "reconnect=" not in chardev


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("socket", "expected"),
    [
        ("", "Only the user who runs vuproc may connect (permissions 0600)"),
        (", owner: root", "Only user root may connect (permissions 0600)"),
        (
            ", group: root, permissions: 0660",
            "Only the user who runs vuproc and group root may connect (permissions 0660)",
        ),
        (", permissions: 0666", "Everybody who can reach the socket's folder may connect"),
    ],
)
def test_c5_who_may_connect_is_said(folder: Path, client: str, socket: str, expected: str) -> None:
    path = folder / "disk.yaml"
    path.write_text(f"socket: {{path: ./disk.sock{socket}}}\ndevice: {{{any_for(client)}}}\n")
    text = hint(client, load(path))
    assert expected in text
    assert ("owner: " in text) == ("Only" in expected)
    assert ("owner: libvirt-qemu" in text) == (client == "libvirt" and "Only" in expected)


@pytest.mark.parametrize("page", ["docs/tutorial-disk.md", "docs/operations.md"])
def test_c5_the_manual_says_what_the_hints_say(page: str) -> None:
    text = (Path(__file__).parents[2] / page).read_text(encoding="utf-8")
    assert all(client in text for client in CLIENTS)
    for paragraph in re.split(r"\n(?=\n|[*-] )", text):
        assert "reconnect=" not in paragraph or "reconnect-ms=" in paragraph


def test_c5_who_may_connect_is_not_ours_to_say_in_client_mode(folder: Path) -> None:
    assert "connect (permissions" not in hint("qemu", device_file(folder, mode="client"))


def test_c5_cloud_hypervisor_takes_any_type(folder: Path) -> None:
    text = hint("cloud-hypervisor", device_file(folder))
    generic = f"socket={folder}/disk.sock,virtio_id=2,queue_sizes=[256,256,256,256]"
    assert f"--generic-vhost-user '{generic}'" in text
    assert "from version 52 on" in text
    assert "generic" not in hint("cloud-hypervisor", author(folder, 1, 2, mode="client"))


def test_cloud_hypervisor(folder: Path) -> None:
    assert words(hint("cloud-hypervisor", device_file(folder))) == [
        "cloud-hypervisor",
        *("--memory", "size=1G,shared=on"),
        "--disk",
        f"vhost_user=true,socket={folder}/disk.sock,num_queues=4,queue_size=256",
    ]
    assert words(hint("cloud-hypervisor", author(folder, 1, 2, mode="client")))[-1] == (
        f"vhost_user=true,socket={folder}/disk.sock,num_queues=2,queue_size=256,vhost_mode=server"
    )
    assert words(hint("cloud-hypervisor", author(folder, 4, 2)))[-2:] == [
        "--generic-vhost-user",
        f"socket={folder}/disk.sock,virtio_id=4,queue_sizes=[256,256]",
    ]


def test_crosvm(folder: Path) -> None:
    assert words(hint("crosvm", device_file(folder))) == [
        *("crosvm", "run", "--vhost-user"),
        f"block,socket={folder}/disk.sock,max-queue-size=256",
    ]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("type: blk, ram: 64MiB, queues: 4", "type=blk,num_queues=4,queue_size=256"),
        ("type: fs, directory: ., tag: mine", "type=fs,tag=mine,num_queues=1,queue_size=256"),
        ("type: rng", "device_id=4,queue_sizes=[256]"),
    ],
)
def test_openvmm(folder: Path, device: str, expected: str) -> None:
    assert words(hint("openvmm", device_file(folder, device), "2G")) == [
        *("openvmm", "--memory", "2GB"),
        *("--vhost-user", f"{folder}/disk.sock,{expected}"),
    ]


def test_libkrun(folder: Path) -> None:
    text = hint("libkrun", device_file(folder, "type: rng, queue_size: 64"))
    assert f'krun_add_vhost_user_device(ctx, 4, "{folder}/disk.sock",' in text
    assert '"vuproc-disk", 1, (uint16_t[]){64});' in text
    assert "-ENOTSUP" in text


def test_kata_has_its_own_place_for_sockets(folder: Path) -> None:
    text = hint("kata", device_file(folder))
    store = "/var/run/kata-containers/vhost-user"
    assert f"the device file needs socket: {store}/block/sockets/disk.sock" in text
    assert f"{folder}/disk.sock" in text
    assert f"mknod {store}/block/devices/disk.sock b 241 0" in text
    path = folder / "disk.yaml"
    (folder / "block" / "sockets").mkdir(parents=True)
    path.write_text("socket: ./block/sockets/d0\ndevice: {type: blk, ram: 64MiB}\n")
    text = hint("kata", load(path))
    assert f'vhost_user_store_path = "{folder}"' in text
    assert f"mknod {folder}/block/devices/d0 b 241 0" in text
    assert "needs socket: /" not in text


def test_qemu_is_told_of_packed_rings_and_iothreads_where_they_are(folder: Path) -> None:
    disk = hint("qemu", device_file(folder))
    assert ",packed=on" in disk and "no iothread-vq-mapping" in disk
    assert "iothread" not in hint("qemu", device_file(folder, "type: rng"))
    path = folder / "disk.yaml"
    path.write_text("socket: ./disk.sock\npacked: false\ndevice: {type: blk, ram: 64MiB}\n")
    assert "packed=on" not in hint("qemu", load(path))


def test_libvirt_disk_is_xml(folder: Path) -> None:
    root = ElementTree.fromstring(f"<domain>{hint('libvirt', device_file(folder))}</domain>")
    assert root.find("memoryBacking/access[@mode='shared']") is not None
    assert root.find("memoryBacking/source[@type='memfd']") is not None
    disk = root.find("disk")
    assert disk is not None
    assert disk.attrib == {"type": "vhostuser", "device": "disk"}
    source = disk.find("source")
    assert source is not None
    assert source.attrib == {"type": "unix", "path": f"{folder}/disk.sock"}
    assert disk.find("driver[@queues='4'][@queue_size='256']") is not None
    assert disk.find("source/reconnect[@enabled='yes']") is not None


@pytest.mark.parametrize("number", [1, 4, 26, 44])
def test_libvirt_other_devices_are_xml(folder: Path, number: int) -> None:
    text = hint("libvirt", author(folder, number, 2))
    root = ElementTree.fromstring(
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>" + text + "</domain>"
    )
    assert root.find("memoryBacking") is not None
    assert f"{folder}/disk.sock" in text


def test_uml(folder: Path) -> None:
    text = hint("uml", device_file(folder), "128M")
    command = ["TMPDIR=/dev/shm", "linux.uml", "mem=128M"]
    assert words(text) == [*command, f"virtio_uml.device={folder}/disk.sock:2"]
    assert "one queue of the 4" in text
    # Where each queue is for something of its own, drivers use them all.
    assert "one queue of" not in hint("uml", device_file(folder, "type: input"))


def test_libblkio(folder: Path) -> None:
    text = hint("libblkio", device_file(folder))
    assert f'blkio_set_str(b, "path", "{folder}/disk.sock");' in text
    assert 'blkio_set_int(b, "num-queues", 4);' in text
    assert f"driver=virtio-blk-vhost-user,path={folder}/disk.sock,cache.direct=on" in text


def test_dpdk(folder: Path) -> None:
    text = hint("dpdk", device_file(folder, "type: net, pairs: 2, queue_size: 512"))
    assert words(text) == [
        *("dpdk-testpmd", "--no-huge", "-m", "512", "--no-shconf", "--no-pci", "--no-telemetry"),
        f"--vdev=net_virtio_user0,path={folder}/disk.sock,queues=2,queue_size=512",
        *("--", "-i", "--rxq=2", "--txq=2", "--rxd=512", "--txd=512"),
    ]


def test_a_network_device_of_several_pairs(folder: Path) -> None:
    file = device_file(folder, "type: net, pairs: 2")
    assert "vhost-user,id=vuproc-disk-net,chardev=vuproc-disk,queues=2" in words(hint("qemu", file))
    hypervisor = hint("cloud-hypervisor", file)
    assert "num_queues=4,queue_size=256" in hypervisor
    assert "virtio_id=1,queue_sizes=[256,256,256,256,256]" in hypervisor
    several = hint("uml", file)
    assert f"virtio_uml.device={folder}/disk.sock:1" in several
    assert "its driver uses one pair of queues" in several
    assert "one pair" not in hint("uml", device_file(folder, "type: net"))


@pytest.mark.parametrize(
    ("client", "number", "mode", "expected"),
    [
        ("libblkio", 4, "server", "drives block devices only, and this is an entropy source"),
        ("crosvm", 36, "server", "crosvm has no vhost-user CAN controller"),
        ("cloud-hypervisor", 16, "server", "Cloud Hypervisor cannot have a vhost-user GPU"),
        ("cloud-hypervisor", 4, "client", "Cloud Hypervisor connects to a listening device"),
        ("crosvm", 4, "client", "crosvm connects to a listening device"),
        ("openvmm", 16, "server", "it has no display for one"),
        ("openvmm", 4, "client", "OpenVMM connects to a listening device"),
        ("libkrun", 26, "server", "no word for the tag"),
        ("libkrun", 4, "client", "libkrun connects to a listening device"),
        ("kata", 1, "server", "disks that a container asks for, and this is a network device"),
        ("kata", 2, "client", "Kata Containers connects to a listening device"),
        ("dpdk", 2, "server", "drives network devices only, and this is a block device"),
        ("dpdk", 1, "client", "DPDK connects to a listening device"),
        ("uml", 4, "client", "User-Mode Linux connects to a listening device"),
    ],
)
def test_client_that_cannot_have_the_device(
    folder: Path, client: str, number: int, mode: str, expected: str
) -> None:
    with pytest.raises(HintError, match=expected):
        hint(client, author(folder, number, mode=mode))


def test_each_type_has_the_article_of_its_sound() -> None:
    """An S that is spoken as a letter begins with a vowel; a SCSI host does not."""
    target = Target(**{field.name: None for field in fields(Target)})  # type: ignore[arg-type]
    kinds = {number: replace(target, device_id=number).a_kind for number in [*NAMES, 44]}
    assert {number for number, kind in kinds.items() if kind.startswith("an ")} == {
        *(4, 18, 32, 34, 45),
    }
    assert kinds[8] == "a SCSI host"
    assert kinds[45] == "an SPI controller"
    assert kinds[44] == "a device of virtio's type 44"


@pytest.mark.parametrize("client", ["libvirt", "libblkio"])
def test_client_mode_disk_where_it_cannot_be(folder: Path, client: str) -> None:
    with pytest.raises(HintError, match="set mode: server in the device file"):
        hint(client, device_file(folder, mode="client"))


def test_awkward_paths_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "a, <b> 'c'"
    folder.mkdir()
    file = device_file(folder)
    sock = f"{folder}/disk.sock"
    assert f"socket,id=vuproc-disk,path={sock.replace(',', ',,')}" in words(hint("qemu", file))
    assert f'vhost_user=true,socket="{sock}",num_queues=4,queue_size=256' in words(
        hint("cloud-hypervisor", file)
    )
    root = ElementTree.fromstring(f"<domain>{hint('libvirt', file)}</domain>")
    source = root.find("disk/source")
    assert source is not None
    assert source.get("path") == sock
    with pytest.raises(HintError, match="no socket path with a colon or a space"):
        hint("uml", file)


@pytest.mark.parametrize("client", CLIENTS)
def test_no_hint_mentions_another_socket(folder: Path, client: str) -> None:
    assert f"{folder}/disk.sock" in hint(client, device_file(folder, any_for(client)))

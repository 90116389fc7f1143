"""QEMU with vhost-user devices: with a Linux guest, or halted and driven over its test socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vuproc.testing.vms import clients
from vuproc.testing.vms.clients import Qemu
from vuproc.testing.vms.linux import LinuxGuest

MEMORY_MIB = 256
FIRST_SLOT = 4
EMULATED = "tcg,thread=multi"
KVM = "kvm"
"""How the processor is had."""
# An emulated machine has next to no chance events: without this instruction the first program that
# asks for random bytes (mke2fs does) waits seconds for them.
PROCESSOR = "qemu64,+rdrand"
# Nor does the kernel clear each page that it takes: a migration would copy what a device writes
# there for that alone, whatever the device says of it.
FAST = "nokaslr mitigations=off random.trust_cpu=on init_on_alloc=0"


@dataclass(frozen=True, kw_only=True)
class VhostUserDevice:
    """A device of QEMU's whose other half is a vhost-user back-end.

    `driver` and `properties` make its `-device`; QEMU connects to `socket` (again after
    `reconnect_s` seconds if it was lost), or listens there with `server`.
    """

    socket: Path
    driver: str = "vhost-user-blk-pci"
    properties: Mapping[str, str | int] = field(default_factory=dict)
    reconnect_s: int | None = None
    server: bool = False

    def arguments(self, number: int, program: Path) -> list[str]:
        """What adds it to `program` as the `number`th device, in PCI slot 4 + number."""
        device = self._device(number, f"chardev=vhost{number}")
        return [*self._connection(number, program), "-device", device]

    def _connection(self, number: int, program: Path) -> list[str]:
        chardev = f"socket,id=vhost{number},path={self.socket.absolute()}"
        if self.reconnect_s is not None:
            chardev += f",{_reconnect(self.reconnect_s, program)}"
        if self.server:
            chardev += ",server=on,wait=off"
        return ["-chardev", chardev]

    def _device(self, number: int, backend: str) -> str:
        device = f"{self.driver},{backend},addr={FIRST_SLOT + number:#x}"
        for name, value in self.properties.items():
            device += f",{name}={value}"
        return device


@dataclass(frozen=True, kw_only=True)
class VhostUserNet(VhostUserDevice):
    """A network device of QEMU's own, whose pairs of queues a vhost-user back-end serves.

    It has no boot ROM, so nothing but the guest's driver uses it.
    """

    driver: str = "virtio-net-pci"
    pairs: int = 1

    def arguments(self, number: int, program: Path) -> list[str]:
        """As those of any device, with a `-netdev` in between."""
        netdev = f"vhost-user,id=net{number},chardev=vhost{number},queues={self.pairs}"
        many = "on" if self.pairs > 1 else "off"
        device = self._device(number, f"netdev=net{number},romfile=,mq={many}")
        return [*self._connection(number, program), "-netdev", netdev, "-device", device]


def _reconnect(seconds: int, program: Path) -> str:
    """As this QEMU has it: 9.2 has both, what came later the second alone."""
    old = clients.qemu_version(program) < (9, 2)
    return f"reconnect={seconds}" if old else f"reconnect-ms={seconds * 1000}"


IOMMU = {"iommu_platform": "on", "disable-legacy": "on"}
"""Properties of a device that reaches memory through the machine's IOMMU."""


def machine_arguments(
    devices: Sequence[VhostUserDevice],
    *,
    cpus: int,
    qemu: Qemu,
    accel: str = EMULATED,
    iommu: bool = False,
    virtio_iommu: bool = False,
) -> list[str | Path]:
    """The command line that halted and booted machines share: bare, memory shared.

    iommu: with Intel's, or `virtio_iommu`, which is there for devices with the properties `IOMMU`.
    """
    program = clients.qemu(qemu)
    command: list[str | Path] = [program, "-nodefaults", "-no-user-config"]
    machine = "q35,vmport=off" if iommu else "pc"
    command += ["-machine", f"{machine},memory-backend=ram", "-accel", accel]
    command += ["-display", "none", "-smp", str(cpus), "-m", f"{MEMORY_MIB}M"]
    command += ["-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on"]
    if iommu:
        # Before what is behind it.
        command += ["-device", "virtio-iommu-pci" if virtio_iommu else "intel-iommu,intremap=off"]
    for number, device in enumerate(devices):
        command += device.arguments(number, program)
    return command


def boot_qemu(
    devices: Sequence[VhostUserDevice],
    *,
    script: str,
    modules: Sequence[str] = ("virtio_pci", "virtio_blk"),
    programs: Sequence[Path] = (),
    cpus: int = 2,
    reboots: bool = False,
    qemu: Qemu = Qemu.INSTALLED,
    extra: Sequence[str] = (),
    iommu: str | None = None,
    virtio_iommu: bool = False,
    suite: str = "",
) -> LinuxGuest:
    """Boots Linux under emulation on vhost-user devices and runs `script` in it.

    With `reboots` a guest that reboots starts again from the beginning, with the same memory and
    devices; otherwise that ends it. `extra` are further options of QEMU's. `iommu`: there is one,
    and what the kernel is told of it ("iommu.strict=1"); `virtio_iommu`: not Intel's. `suite`:
    whose kernel it is (`clients.qemu_kernel`). `ClientMissing` if QEMU or a kernel is not on this
    machine.
    """
    command = machine_arguments(
        devices, cpus=cpus, qemu=qemu, iommu=iommu is not None, virtio_iommu=virtio_iommu
    )
    kernel = clients.qemu_kernel(suite)

    def complete(home: Path, initramfs: Path) -> list[str | Path]:
        append = f"console=ttyS0 quiet loglevel=3 panic=-1 {FAST}"
        if iommu is not None:
            append += f" {iommu}" if virtio_iommu else f" intel_iommu=on {iommu}"
        boot: list[str | Path] = ["-kernel", kernel.image, "-initrd", initramfs, "-append", append]
        ends = [] if reboots else ["-no-reboot"]
        return [*command, *boot, *ends, "-cpu", PROCESSOR, "-serial", "stdio", *extra]

    return LinuxGuest(kernel, complete, script=script, modules=modules, programs=programs)

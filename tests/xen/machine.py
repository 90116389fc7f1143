"""A machine under QEMU's emulation that boots Xen; its first domain has this Python and checkout.

Its root is ours, over 9p and not to be written to. What Python reads file by file comes as one
archive and lies in memory: a look at a file costs a millisecond there.
"""

from __future__ import annotations

import gzip
import shlex
import site
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vuproc.testing.vms import ClientMissing, clients
from vuproc.testing.vms.kernel import Modules
from vuproc.testing.vms.linux import LinuxGuest

HERE = Path(__file__).parents[2]
HOW = "VUPROC_LONG=1 sh deploy/setup gets it where apt is there"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "xen_gntdev", "xen_privcmd")
MEMORY_MIB, FIRST_DOMAIN_MIB = 1792, 1024
STARTED_BY = frozenset({"multiprocess", "_multiprocess", "dill"})
"""What processes of vuproc import, and we do not."""
LEFT_OUT = frozenset({"test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo"})
"""Of Python's own library."""

SCRIPT = """
mkdir -p /host /dev/shm /dev/pts
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 host /host
mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t devtmpfs dev /host/dev
mount -t tmpfs shm /host/dev/shm
mount -t tmpfs tmp /host/mnt
for place in {places}; do mount -t tmpfs memory /host$place; done
tar -x -C /host -f /host{archive}
ifconfig lo up
cd /sys/hypervisor && say xen $(cat type) $(cat version/major).$(cat version/minor)
export HOME=/mnt TMPDIR=/mnt PATH=/usr/bin:/bin:$PATH PYTHONDONTWRITEBYTECODE=1
chroot /host sh -c {command} </dev/null
"""


def hypervisor() -> Path:
    """Xen, unpacked below the cache, as QEMU takes it."""
    packed = sorted((clients.cache() / "xen").glob("boot/xen-*.gz"))
    if not packed:
        raise ClientMissing("Xen", f"there is none below {clients.cache() / 'xen'} ({HOW})")
    image = packed[-1].with_suffix(".elf")
    if not image.exists():
        image.write_bytes(gzip.decompress(packed[-1].read_bytes()))
    return image


def kernel() -> clients.Kernel:
    """A Linux that can be Xen's first domain."""
    folder = clients.cache() / "xen-linux"
    images = sorted(folder.glob("boot/vmlinuz-*"))
    if not images:
        raise ClientMissing("Linux for Xen", f"there is none below {folder} ({HOW})")
    release = images[-1].name.removeprefix("vmlinuz-")
    return clients.Kernel(images[-1], Modules(next(folder.glob(f"**/lib/modules/{release}"))))


def boot(command: Sequence[str], folder: Path) -> LinuxGuest:
    """Runs `command` in the checkout as its first domain sees it; what it says are lines."""
    archive, places = folder / "python.tar", [*libraries(), HERE / "vuproc", HERE / "tests"]
    with tarfile.open(archive, "w") as tar:
        for path in files(places):
            tar.add(path, recursive=False)
    xen, linux = hypervisor(), kernel()
    script = SCRIPT.format(
        places=" ".join(map(shlex.quote, outermost(places))),
        archive=shlex.quote(str(archive)),
        command=shlex.quote(f"cd {shlex.quote(str(HERE))} && {shlex.join(command)}"),
    )

    def complete(_home: Path, initramfs: Path) -> list[str | Path]:
        ours = "console=com1 com1=115200,8n1 loglvl=warning noreboot"
        theirs = "console=hvc0 quiet loglevel=3 panic=-1 nokaslr mitigations=off"
        qemu: list[str | Path] = [clients.qemu(), "-nodefaults", "-no-user-config"]
        qemu += ["-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+rdrand"]
        qemu += ["-smp", "2", "-m", f"{MEMORY_MIB}M", "-display", "none", "-serial", "stdio"]
        share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        qemu += ["-virtfs", share, "-no-reboot", "-kernel", xen]
        qemu += ["-append", f"{ours} dom0_mem={FIRST_DOMAIN_MIB}M,max:{FIRST_DOMAIN_MIB}M"]
        return [*qemu, "-initrd", f"{linux.image} {theirs},{initramfs}"]

    return LinuxGuest(linux, complete, script=script, modules=MODULES)


def libraries() -> list[Path]:
    """Where this Python has its modules."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = {Path(sysconfig.get_path(name)) for name in names}
    return sorted(found | {Path(place) for place in site.getsitepackages()})


def outermost(places: Sequence[Path]) -> list[str]:
    """Those that lie in none of the others; they must be there."""
    return [
        str(place)
        for place in sorted(set(places))
        if place.is_dir() and not any(other in place.parents for other in places)
    ]


def files(places: Sequence[Path]) -> Iterator[Path]:
    """What lies in them and may be imported; of other people's packages only what we have imported,
    which is more than the tests of one folder do.
    """
    used = {name.partition(".")[0] for name in sys.modules} | STARTED_BY
    for place in outermost(places):
        for path in sorted(Path(place).rglob("*")):
            if path.is_dir() and not path.is_symlink():
                continue
            parts = path.relative_to(place).parts
            if "site-packages" in parts:
                top = parts[parts.index("site-packages") + 1]
                if (
                    top.partition(".")[0] in used
                    or top.endswith((".pth", ".dist-info"))
                    or top.startswith("__editable__")
                ):
                    yield path
            elif Path(place) in (HERE / "vuproc", HERE / "tests"):
                if path.suffix not in {".c", ".o"} or "tests" in place:
                    yield path
            elif parts[0] not in LEFT_OUT and not parts[0].startswith("config-"):
                yield path


def is_used(top: str, modules: set[str]) -> bool:
    """Whether this in site-packages is one of the modules, or says where some are."""
    if top.endswith((".pth", ".dist-info")) or top.startswith("__editable__"):
        return True
    return top.partition(".")[0] in modules

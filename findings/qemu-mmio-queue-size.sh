#!/bin/sh
# QEMU's virtio-mmio lets a driver take 1024 entries a queue, whatever the device's queue-size says.
#
# Version    qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 of Debian 12, machine microvm.
# Behaviour  A virtio-blk device is given queue-size=128. Its virtio-mmio transport has 1024 in QueueNumMax
#            (virtio 1.3, 4.2.2: the largest size that the driver may choose), as with queue-size=256 and 1024,
#            and Linux takes as much as it may. On a PCI machine the same option bounds what the driver sees. So a
#            vhost-user back-end that was told 128 gets rings of 1024 there, and one that has no room for them
#            must refuse the ring: the guest hangs in its probe.
# Seen       queue-size=128: QueueNumMax 1024
#            queue-size=256: QueueNumMax 1024
#            queue-size=1024: QueueNumMax 1024
# Source     read from the transport's registers through QEMU's own test protocol (-qtest): magic at 0x000, device
#            id at 0x008, QueueSel at 0x030, QueueNumMax at 0x034. hw/virtio/virtio-mmio.c answers the last
#            with the constant VIRTQUEUE_MAX_SIZE as soon as the queue exists.
#
# Needs root, Debian 12 on x86-64 and its mirror. Ends with 0 if QEMU still does this, with 1 if not.
set -eu
version=1:7.2+dfsg-7+deb12u18+b3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debs/partial" "$work/root"

apt-get update >"$work/log" 2>&1 || true
# What is installed already is not fetched again, but for QEMU itself.
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --download-only --reinstall \
    -o Dir::Cache::archives="$work/debs" -o APT::Sandbox::User=root \
    "qemu-system-x86=$version" "qemu-system-common=$version" qemu-system-data seabios >>"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    echo "qemu-system-x86=$version cannot be had" >&2
    exit 2
}
for deb in "$work"/debs/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
done

cat >"$work/look.py" <<'PYTHON'
import subprocess
import sys

root, queue_size = sys.argv[1:]
FIRST, STEP, TRANSPORTS = 0xFEB00000, 0x200, 24
MAGIC, BLOCK = 0x74726976, 2

qemu = subprocess.Popen(
    [f"{root}/usr/bin/qemu-system-x86_64", "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios",
     "-M", "microvm", "-S", "-nodefaults", "-display", "none", "-qtest", "stdio",
     "-blockdev", "driver=null-co,node-name=disk,size=1048576",
     "-device", f"virtio-blk-device,drive=disk,queue-size={queue_size}"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
)


def ask(command: str) -> list[str]:
    qemu.stdin.write(command + "\n")
    qemu.stdin.flush()
    for line in qemu.stdout:
        if line.startswith(("OK", "FAIL")):
            return line.split()
    sys.exit("QEMU has ended")


def read(address: int) -> int:
    return int(ask(f"readl {address:#x}")[1], 16)


try:
    for base in range(FIRST, FIRST + STEP * TRANSPORTS, STEP):
        if read(base) == MAGIC and read(base + 0x8) == BLOCK:
            ask(f"writel {base + 0x30:#x} 0")
            print(f"queue-size={queue_size}: QueueNumMax {read(base + 0x34)}")
            break
    else:
        sys.exit("no virtio-mmio transport has the disk")
finally:
    qemu.kill()
    qemu.wait()
PYTHON

QEMU_MODULE_DIR=$(dirname "$(find "$work/root" -name 'accel-tcg-x86_64.so')")
LD_LIBRARY_PATH=$(dirname "$QEMU_MODULE_DIR")
export QEMU_MODULE_DIR LD_LIBRARY_PATH
for size in 128 256 1024; do
    timeout 60 python3 "$work/look.py" "$work/root" "$size" >>"$work/seen" || exit 2
done
cat "$work/seen"
[ "$(grep -c ': QueueNumMax 1024$' "$work/seen")" = 3 ]

#!/bin/sh
# QEMU 7.2 keeps a GPIO controller's interrupts from the guest: VIRTIO_GPIO_F_IRQ is not passed on.
#
# Version    qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 of Debian 12, vhost-user-gpio-pci.
# Behaviour  A vhost-user back-end offers VIRTIO_GPIO_F_IRQ (bit 0; virtio 1.3, 5.18.3) beside VERSION_1. QEMU asks
#            for its features, hears them, and offers the driver none of the device type's own. So a driver never
#            asks for an interrupt, and programs in the guest that wait for an edge are told that there are none
#            to be had. QEMU 10.0 passes the bit on.
# Seen       the back-end has said 0x140000001
#            QEMU offers of the device type's own: nothing
# Source     a back-end of a few lines for the set-up, and QEMU's x-query-virtio-status for what is offered. In
#            hw/virtio/vhost-user-gpio.c of 7.2 the list of bits that are passed on has only those of the ring.
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
import json
import socket
import struct
import subprocess
import sys
import threading

root, work = sys.argv[1:]
IRQ, PROTOCOL, VERSION_1 = 1, 1 << 30, 1 << 32
OFFERED = IRQ | PROTOCOL | VERSION_1
CONFIG = 1 << 9
GET_FEATURES, GET_PROTOCOL, QUEUES, GET_CONFIG = 1, 15, 17, 24
ANSWERS = {GET_FEATURES: OFFERED, GET_PROTOCOL: CONFIG, QUEUES: 2}

listener = socket.socket(socket.AF_UNIX)
listener.bind(f"{work}/gpio")
listener.listen()


def serve() -> None:
    """Say what is asked for while QEMU makes the device."""
    client, _ = listener.accept()
    with client:
        while head := client.recv(12, socket.MSG_WAITALL):
            request, _, size = struct.unpack("<III", head)
            body = client.recv(size, socket.MSG_WAITALL) if size else b""
            if request == GET_CONFIG:
                answer = body[:12] + struct.pack("<HHI", 4, 0, 0).ljust(size - 12, b"\0")[: size - 12]
            elif request in ANSWERS:
                answer = struct.pack("<Q", ANSWERS[request])
            else:
                continue
            if request == GET_FEATURES:
                said.add(ANSWERS[request])
            client.sendall(struct.pack("<III", request, 0x5, len(answer)) + answer)


said: set[int] = set()
threading.Thread(target=serve, daemon=True).start()
qemu = subprocess.Popen(
    [f"{root}/usr/bin/qemu-system-x86_64", "-L", f"{root}/usr/share/qemu", "-L", f"{root}/usr/share/seabios",
     "-M", "pc,memory-backend=ram", "-S", "-nodefaults", "-display", "none", "-m", "64M",
     "-object", "memory-backend-memfd,id=ram,size=64M,share=on",
     "-chardev", f"socket,id=c,path={work}/gpio", "-device", "vhost-user-gpio-pci,chardev=c,id=gpio",
     "-qmp", "stdio"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
)


def ask(command: str, **arguments: str) -> object:
    qemu.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    qemu.stdin.flush()
    for line in qemu.stdout:
        answer = json.loads(line)
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            sys.exit(f"{command}: {answer['error']['desc']}")
    sys.exit("QEMU has ended")


try:
    ask("qmp_capabilities")
    status = ask("x-query-virtio-status", path="/machine/peripheral/gpio/virtio-backend")
    features = status["host-features"]
    unnamed = features.get("unknown-dev-features", 0) & 0xFFFFFF
    offered = features.get("dev-features", []) + [f"bits {unnamed:#x}"] * (unnamed != 0)
    print(f"the back-end has said {max(said):#x}")
    print(f"QEMU offers of the device type's own: {', '.join(offered) or 'nothing'}")
finally:
    qemu.kill()
    qemu.wait()
PYTHON

QEMU_MODULE_DIR=$(dirname "$(find "$work/root" -name 'accel-tcg-x86_64.so')")
LD_LIBRARY_PATH=$(dirname "$QEMU_MODULE_DIR")
export QEMU_MODULE_DIR LD_LIBRARY_PATH
timeout 60 python3 "$work/look.py" "$work/root" "$work" >"$work/seen" || exit 2
cat "$work/seen"
grep -q '^the back-end has said 0x140000001$' "$work/seen"
grep -q ': nothing$' "$work/seen"

#!/bin/sh
# QEMU's NBD server hangs up at once on a client that has nothing more to say, and goes on with its writes.
#
# Version    qemu-storage-daemon of qemu-system-common 1:7.2+dfsg-7+deb12u18+b3 (Debian 12).
# Behaviour  A client sends three writes and then the end of its side of the stream (shutdown, not close), to see by
#            the end of the other side when all of them are done. The server ends the stream in the same moment,
#            without a reply to any, and carries the writes out afterwards: here one a second, for its storage is
#            throttled to that. So neither the end of a connection nor one that is made after it says that what came
#            by it is over: a write may overtake those that the client sends next. nbdkit 1.32 ends the stream when
#            nothing is left under way.
# Seen       end of the stream after 0 s, replies: 0 bytes
#            written by then: not all; 4 s later: all
# Source     nbd/server.c of QEMU 7.2: nbd_trip goes to "disconnect" when there is nothing to receive, and
#            client_close shuts the socket down both ways before the requests have dropped their references.
#
# Needs Debian 12 on x86-64, its mirror and python3. Ends with 0 if QEMU still does this, with 1 if not.
set -eu
version='1:7.2+dfsg-7+deb12u18+b3'
work=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$work/debs/partial" "$work/root"
apt-get update >"$work/log" 2>&1 || true
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --download-only --reinstall \
    -o Dir::Cache::archives="$work/debs" -o APT::Sandbox::User=root "qemu-system-common=$version" >>"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    echo "qemu-system-common=$version cannot be had" >&2
    exit 2
}
for deb in "$work"/debs/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
done
libraries=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu
truncate -s 1M "$work/disk"
LD_LIBRARY_PATH=$libraries "$work/root/usr/bin/qemu-storage-daemon" \
    --object throttle-group,id=slow,limits.iops-write=1 \
    --blockdev "driver=file,node-name=file,filename=$work/disk" \
    --blockdev driver=throttle,throttle-group=slow,file=file,node-name=disk \
    --nbd-server "addr.type=unix,addr.path=$work/nbd.sock" \
    --export type=nbd,id=e,node-name=disk,name=disk,writable=on \
    --daemonize --pidfile "$work/pid"
daemon=$(cat "$work/pid")

python3 - "$work" <<'CLIENT'
import socket
import struct
import sys
import time

work = sys.argv[1]
client = socket.socket(socket.AF_UNIX)
client.settimeout(20)
client.connect(f"{work}/nbd.sock")


def receive(count):
    data = b""
    while len(data) < count:
        data += client.recv(count - len(data))
    return data


receive(18)  # the greeting
client.sendall(struct.pack(">I", 1))
# NBD_OPT_GO for the export "disk", asking for nothing beyond what is told anyway.
client.sendall(struct.pack(">8sII", b"IHAVEOPT", 7, 10) + struct.pack(">I4sH", 4, b"disk", 0))
while True:
    _, _, kind, length = struct.unpack(">QIII", receive(20))
    receive(length)
    if kind == 1:
        break
for number in range(3):
    # NBD_CMD_WRITE of 4 KiB.
    client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, number, 4096 * number, 4096) + b"x" * 4096)
began = time.monotonic()
client.shutdown(socket.SHUT_WR)
replies = 0
while data := client.recv(65536):
    replies += len(data)
took = time.monotonic() - began


def written():
    with open(f"{work}/disk", "rb") as disk:
        return disk.read().count(b"x")


then = written()
time.sleep(4)
last = written()
print(f"end of the stream after {took:.0f} s, replies: {replies} bytes")
print(f"written by then: {'all' if then == 12288 else 'not all'}; 4 s later: {'all' if last == 12288 else 'not all'}")
sys.exit(not (took < 0.5 and replies == 0 and then < 12288 and last == 12288))
CLIENT

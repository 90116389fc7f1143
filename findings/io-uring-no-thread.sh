#!/bin/sh
# io_uring answers writes to a tmpfs with ECANCELED, which nobody has cancelled, where it can make no thread.
#
# Version    fio 3.33-3 of Debian 12 with its io_uring engine; Linux 6.18.
# Behaviour  A write that may block, as each to a file on tmpfs may, is done by a thread that the kernel makes in the
#            name of the process. Where a limit of processes leaves none (RLIMIT_NPROC here; pids.max and TasksMax=
#            do the same), the kernel gives up at once: every such write comes back with ECANCELED, as if it had been
#            taken back. Programs that take errors of a disk for errors of the disk see a whole batch of them fail;
#            a plain write to the same file at the same limit works, and so do the same writes with one thread more.
# Seen       fio: io_u error on file .../file: Operation canceled: write offset=0, buflen=4096
#            3 processes: io_uring canceled, psync ok; 4 processes: io_uring ok
# Source     fio's own main thread, helper and job are three. In the kernel's io_uring/io-wq.c the first thread that
#            cannot be made ends what waits for it.
#
# Needs root, Debian 12 on x86-64 and its mirror. Ends with 0 if the kernel still does this, with 1 if not.
set -eu
version=3.33-3
user=54321
work=$(mktemp -d)
disk=$(mktemp -d -p /dev/shm)
trap 'rm -rf "$work" "$disk"' EXIT
mkdir -p "$work/debs/partial" "$work/root"

apt-get update >"$work/log" 2>&1 || true
# What is installed already is not fetched again, but for fio itself.
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --download-only --reinstall \
    -o Dir::Cache::archives="$work/debs" -o APT::Sandbox::User=root "fio=$version" >>"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    echo "fio=$version cannot be had" >&2
    exit 2
}
for deb in "$work"/debs/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
done
chmod -R a+rX "$work"
chmod 777 "$disk"
libraries=$work/root/usr/lib/x86_64-linux-gnu

# What becomes of 1 MiB that engine $1 writes where there may be $2 processes.
write_with() {
    timeout 60 setpriv --reuid="$user" --regid="$user" --clear-groups prlimit --nproc="$2" \
        env LD_LIBRARY_PATH="$libraries:$libraries/ceph" "$work/root/usr/bin/fio" --thread --name=write \
        --filename="$disk/file" --size=1M --bs=4k --rw=write --iodepth=16 --ioengine="$1" >"$work/said" 2>&1 || true
    if grep -q 'io_u error.*Operation canceled: write' "$work/said"; then
        echo canceled
    elif grep -q 'err= 0' "$work/said"; then
        echo ok
    else
        tail -n 3 "$work/said" >&2
        echo failed
    fi
}

seen="3 processes: io_uring $(write_with io_uring 3), psync $(write_with psync 3); 4 processes: io_uring $(write_with io_uring 4)"
echo "$seen"
[ "$seen" = "3 processes: io_uring canceled, psync ok; 4 processes: io_uring ok" ]

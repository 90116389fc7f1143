#!/bin/sh
# Linux 6.1 reads no more from a virtio entropy device that has filled one of its buffers in part.
#
# Version    linux-image-6.1.0-56-cloud-amd64 6.1.192-2 of Debian 12, virtio_rng as a module, under
#            qemu-system-x86 1:7.2+dfsg-7+deb12u18+b3 with QEMU's own virtio-rng-pci.
# Behaviour  The driver posts a buffer of 64 bytes. A device may fill it in part (virtio 1.3, 5.4.6.1: one byte
#            or more), as QEMU's does with max-bytes=50. Once it has, a reader of /dev/hwrng waits for ever: the
#            driver posts no other buffer. With max-bytes=64, and as few bytes in a second, the same reader ends.
#            So a device that limits its rate has to fill each buffer whole, and make the next one wait.
# Seen       max-bytes=64: 1536 bytes were read
#            max-bytes=50: nothing was read within 20 s
# Source     the boot of a machine of these packages, with an initial file system of busybox and the modules.
#
# Needs root, Debian 12 on x86-64 and its mirror. Ends with 0 if Linux still does this, with 1 if not.
set -eu
qemu=1:7.2+dfsg-7+deb12u18+b3
kernel=6.1.0-56-cloud-amd64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/debs/partial" "$work/root" "$work/init/bin"

apt-get update >"$work/log" 2>&1 || true
# What is installed already is not fetched again, but for what this is about.
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends --download-only --reinstall \
    -o Dir::Cache::archives="$work/debs" -o APT::Sandbox::User=root \
    "qemu-system-x86=$qemu" "qemu-system-common=$qemu" qemu-system-data seabios \
    "linux-image-$kernel=6.1.192-2" busybox-static=1:1.35.0-4+deb12u1+b1 cpio >>"$work/log" 2>&1 || {
    tail -n 5 "$work/log" >&2
    echo "the packages cannot be had" >&2
    exit 2
}
for deb in "$work"/debs/*.deb; do
    dpkg-deb -x "$deb" "$work/root"
done

cp "$work/root/bin/busybox" "$work/init/bin/busybox"
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio-rng"
for module in $modules; do
    cp "$(find "$work/root" -path "*$kernel*/$module.ko")" "$work/init/"
done
cat >"$work/init/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir /proc /sys /dev 2>/dev/null
mount -t devtmpfs none /dev
for module in $modules; do insmod /\$module.ko; done
dd if=/dev/hwrng of=/read bs=64 count=24 iflag=fullblock 2>/dev/null &
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    sleep 1
    kill -0 \$! 2>/dev/null || break
done
if kill -0 \$! 2>/dev/null; then
    echo "SEEN nothing was read within 20 s"
else
    echo "SEEN \$(wc -c </read) bytes were read"
fi
poweroff -f
INIT
chmod +x "$work/init/init"
cpio=$(find "$work/root/bin" "$work/root/usr/bin" -name cpio | head -n 1)
(cd "$work/init" && ln -s busybox bin/sh && find . | "$cpio" --quiet -o -H newc) >"$work/initramfs"

QEMU_MODULE_DIR=$(dirname "$(find "$work/root" -name 'accel-tcg-x86_64.so')")
LD_LIBRARY_PATH=$(dirname "$QEMU_MODULE_DIR")
export QEMU_MODULE_DIR LD_LIBRARY_PATH
for most in 64 50; do
    timeout 120 "$work/root/usr/bin/qemu-system-x86_64" \
        -L "$work/root/usr/share/qemu" -L "$work/root/usr/share/seabios" -machine pc,accel=tcg -m 256 \
        -nodefaults -display none -no-reboot -serial stdio \
        -object rng-random,id=source,filename=/dev/urandom \
        -device "virtio-rng-pci,rng=source,max-bytes=$most,period=20" \
        -kernel "$work/root/boot/vmlinuz-$kernel" -initrd "$work/initramfs" \
        -append "console=ttyS0 quiet panic=-1" </dev/null >"$work/console" 2>&1 || exit 2
    tr -d '\r' <"$work/console" | sed -n "s/^SEEN /max-bytes=$most: /p" >>"$work/seen"
done
cat "$work/seen"
[ "$(cat "$work/seen")" = "max-bytes=64: 1536 bytes were read
max-bytes=50: nothing was read within 20 s" ]

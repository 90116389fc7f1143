#!/bin/sh
# User-Mode Linux of Debian 12 panics at the first program of its guest where the host's CPU has AMX.
#
# Version    user-mode-linux 6.1um4+b13 of Debian 12 (Linux 6.1.176); host Linux 6.18, an Intel Xeon of 2023.
# Behaviour  The kernel boots. As soon as it is to go over to its first program it ends with a panic, "Attempted to
#            kill init", with put_fp_registers in its stack. The same file system boots on a CPU without AMX, and on
#            this one if the registers that it hands over are filled up with zeros (vuproc preloads that).
# Seen       Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b
# Source     arch/x86/um/os-Linux/registers.c of 6.1: PTRACE_SETREGSET with NT_X86_XSTATE and the 2696 bytes of
#            HOST_FP_SIZE. xstateregs_set in the host's arch/x86/kernel/fpu/regset.c takes the whole area that the
#            CPU has, 11008 bytes with AMX, and answers EFAULT to less. Linux 6.13 asks the host for the size.
#
# Needs Debian 12 on x86-64, its mirror and a CPU with AMX. Ends with 0 if it still does this, with 1 if not.
set -eu
package=user-mode-linux
version=6.1um4+b13
grep -qw amx_tile /proc/cpuinfo || {
    echo "this CPU has no AMX, so there is nothing to see" >&2
    exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root" "$work/guest"
apt-get update >"$work/log" 2>&1 || true
(cd "$work" && apt-get -o APT::Sandbox::User=root download "$package=$version" >>log 2>&1) || {
    tail -n 5 "$work/log" >&2
    echo "$package=$version cannot be had" >&2
    exit 2
}
dpkg-deb -x "$work"/*.deb "$work/root"

# The guest's root is the host's, read-only; its first program says a word and ends, which is a panic of its own.
TMPDIR=$work timeout 60 "$work/root/usr/bin/linux.uml" mem=64M "uml_dir=$work/guest/" root=/dev/root rootfstype=hostfs \
    ro con=null con0=null,fd:1 panic=-1 init=/bin/echo -- guest-says-hello >"$work/said" 2>&1 </dev/null || true
grep -a -e '^guest-says-hello' -e 'Kernel panic' -e 'put_fp_registers' "$work/said" || true
grep -aq 'Attempted to kill init! exitcode=0x0000000b' "$work/said" && grep -aq put_fp_registers "$work/said"

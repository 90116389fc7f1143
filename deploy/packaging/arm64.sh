# shellcheck shell=sh disable=SC2154
# A wheel for aarch64, compiled across for the Python of this release of Debian, and tried by emulation. Sourced by
# `package`. Registries get theirs by cibuildwheel, on a machine of that kind.

make_arm64() {
    need aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu mmdebstrap:mmdebstrap qemu-aarch64-static:qemu-user-static \
        dpkg-buildpackage:dpkg-dev
    [ -e /usr/aarch64-linux-gnu/include/stdio.h ] || { can_install && install_package libc6-dev-arm64-cross; } \
        || fail "cannot make it, this is missing: libc6-dev-arm64-cross"
    get_tools
    get_vendored "$work/vendor"
    say "unpacking Debian's Python for aarch64"
    make_root "$work/root" arm64 extract python3-venv,libpython3-dev
    copy_sources "$work/source"
    # Where setuptools learns of the machine that it builds for, with the headers of that one.
    mkdir -p "$work/target/include"
    ln -s "$work/root/usr/include/aarch64-linux-gnu" "$work/target/include/"
    sed "s|/usr/include|$work/root/usr/include|g" \
        "$work"/root/usr/lib/python3.*/_sysconfigdata__aarch64-linux-gnu.py \
        >"$work/target/_sysconfigdata__aarch64-linux-gnu.py"
    /usr/bin/python3 -m venv "$work/build"
    "$work/build/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps "$work/vendor"/*.whl
    say "compiling, with warnings as errors"
    translate "$work/source" "$work/build/bin/python"
    across "$work/source" -Werror
    for archive in "$work/vendor"/*.tar.gz; do
        across "$archive"
    done
    try_arm64
    cp "$work"/wheels/vuproc-*.whl "$out/"
}

# Makes a wheel in $work/wheels of $1 for aarch64, with further flags for the compiler.
across() {
    source=$1
    shift
    _PYTHON_HOST_PLATFORM=linux-aarch64 _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__aarch64-linux-gnu \
        PYTHONPATH=$work/target CC=aarch64-linux-gnu-gcc LDSHARED='aarch64-linux-gnu-gcc -shared' \
        CFLAGS="-g0 -I$work/target/include $*" \
        "$work/build/bin/python" -m pip --disable-pip-version-check wheel --quiet --no-index --no-deps \
        --no-build-isolation --wheel-dir "$work/wheels" "$source" >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        fail "${source##*/} cannot be compiled for aarch64"
    }
}

# Installs the wheels into an environment of the foreign root, loads every native module there and has a device file
# checked. That is all: the start of a device, with its processes, takes an emulator longer than a busy machine is given
# for it.
try_arm64() {
    if ! grep -qw binfmt_misc /proc/filesystems; then
        say "it is not tried: this kernel has no binfmt_misc, by which programs of aarch64 would be emulated"
        return 0
    fi
    say "loading it, emulated"
    cp "$here/packaging/natives.py" "$work/root/tmp/"
    # There is no shell in it: packages are unpacked, and none is configured.
    in_arm64 /usr/bin/python3 -m venv --without-pip /opt/vuproc
    # By the pip of this machine, which is the same Python's: emulated it would take minutes.
    site=$(find "$work/root/opt/vuproc/lib" -name site-packages)
    "$work/build/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --no-deps \
        --platform linux_aarch64 --platform any --only-binary :all: --target "$site" --find-links "$work/wheels" \
        dill msgspec multiprocess posix_ipc ruamel.yaml vuproc
    in_arm64 /opt/vuproc/bin/python /tmp/natives.py
    printf '%s\n' 'socket: /tmp/disk.sock' 'device: {type: blk, ram: 1MiB, queues: 2}' >"$work/root/tmp/disk.yaml"
    in_arm64 /opt/vuproc/bin/python -m vuproc check /tmp/disk.yaml
}

# Runs a command in the foreign root. The kernel's table of emulators is one of a namespace of its own, so that this
# machine's has no entry more (Linux 6.7 and later).
in_arm64() {
    cat >"$work/enter" <<'ENTER'
set -eu
root=$1
shift
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":vuproc-arm64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >/proc/sys/fs/binfmt_misc/register
mkdir -p "$root/proc" "$root/dev"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
exec chroot "$root" "$@"
ENTER
    env -i "PATH=$PATH" unshare --user --map-root-user --mount sh "$work/enter" "$work/root" "$@"
}

# shellcheck shell=sh disable=SC2154
# How the clients that play the guest are had on Debian and its kin. Sourced by `setup` after lib.sh.
#
# Only the system's own QEMU, e2fsprogs and systemd (as programs: nothing is started) are installed, since they come with
# trees of libraries. Everything else, later QEMUs too, is unpacked below $cache and found there by vuproc.testing.vms.
# Mirrors are those that apt already knows; the system's configuration is not touched. A thing that cannot be had is said
# with the reason, and the rest goes on.

apt_log=$cache/apt.log
apt_fresh=no

can_install() {
    [ "$(id -u)" = 0 ] && have apt-get
}

# apt-get and apt-cache for this user: root has the system's package lists, others get lists of their own.
with_apt() {
    tool=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        "$tool" -o DPkg::Lock::Timeout=120 "$@"
    else
        mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
        "$tool" -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt" "$@"
    fi
}

# Fetches the package lists, once in a run and only if something is to be got. Old lists may still do.
refresh_lists() {
    [ "$apt_fresh" = no ] || return 0
    apt_fresh=yes
    mkdir -p "$cache"
    : >"$apt_log"
    # Somebody else may be at it, such as a system that brings itself up to date.
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
        with_apt apt-get update >"$apt_log.lists" 2>&1 && updated=yes || updated=no
        cat "$apt_log.lists" >>"$apt_log"
        grep -q '^E: Could not get lock' "$apt_log.lists" || break
        sleep 5
    done
    rm -f "$apt_log.lists"
    [ "$updated" = yes ] || say "apt-get update failed, going on with the lists that are there"
}

# Says why the last apt command failed, in its own words.
apt_reason() {
    grep -E '^E: ' "$apt_log" | tail -n 1 | grep . || printf 'see %s' "$apt_log"
}

# Installs package $1 on the system.
install_package() {
    refresh_lists
    say "installing $1"
    if ! DEBIAN_FRONTEND=noninteractive with_apt apt-get install --yes --no-install-recommends "$1" \
        >>"$apt_log" 2>&1 </dev/null; then
        say "cannot install $1: $(apt_reason)"
        return 1
    fi
}

# Downloads package $2 with apt command $3... and unpacks it as $cache/$1.
unpack() {
    name=$1
    package=$2
    shift 2
    part=$cache/$name.part
    rm -rf "$part" "${cache:?}/$name"
    mkdir -p "$part/root"
    say "unpacking $package below $cache/$name"
    if (cd "$part" && "$@" download "$package") >>"$apt_log" 2>&1 \
        && dpkg-deb -x "$part"/*.deb "$part/root" >>"$apt_log" 2>&1; then
        mv "$part/root" "$cache/$name"
        rm -rf "$part"
    else
        say "cannot get $package: $(apt_reason)"
        rm -rf "$part"
        return 1
    fi
}

# The same for a package of the system's own suite, unless it is there already.
unpack_own() {
    [ -e "$cache/$1" ] && return 0
    refresh_lists
    unpack "$1" "$2" with_apt apt-get
}

# The package that meta-package $1 stands for, by apt command $2...: linux-image-cloud-amd64 names the kernel of the day.
kernel_package() {
    meta=$1
    shift
    "$@" depends --important "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

unpack_kernel() {
    [ -e "$cache/linux" ] && return 0
    refresh_lists
    meta=linux-image-cloud-$(dpkg --print-architecture)
    kernel=$(kernel_package "$meta" with_apt apt-cache)
    if [ -z "$kernel" ]; then
        say "cannot get a kernel for QEMU: apt knows no $meta"
        return 1
    fi
    unpack linux "$kernel" with_apt apt-get
}

# The kernel of a later suite $1 at $cache/linux-$1: its drivers know what the system's own do not. 35 MB.
unpack_later_kernel() {
    [ -e "$cache/linux-$1" ] && return 0
    refresh_lists
    open_suite "$1" "a kernel of $1" || return 1
    kernel=$(kernel_package "linux-image-cloud-$(dpkg --print-architecture)" with_suite "$1" apt-cache)
    if [ -z "$kernel" ]; then
        say "cannot get a kernel of $1: apt knows none"
        return 1
    fi
    unpack "linux-$1" "$kernel" with_suite "$1" apt-get
}

# A later Debian suite $1 is read by a private apt configuration, with the mirror and key that the system's own Debian
# suite has. Nothing of it counts as installed, so that a package is resolved with all that it needs.
with_suite() {
    lists=$cache/suite-$1
    tool=$2
    shift 2
    "$tool" -o Dir::Etc::SourceList="$lists/sources.list" -o Dir::Etc::SourceParts="$lists/none" \
        -o Dir::State="$lists" -o Dir::State::Lists="$lists/lists" -o Dir::State::status="$lists/status" \
        -o Dir::Cache="$lists" -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# Fetches the package lists of suite $1, once in a run, for $2. `close_suites` removes them.
open_suite() {
    lists=$cache/suite-$1
    [ -e "$lists/fetched" ] && return 0
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016  # the dollars are apt's
    mirror=$(with_apt apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' \
        | sed -n "s/^Debian $codename //p" | head -n 1)
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ -z "$mirror" ] || ! [ -e "$keys" ]; then
        say "cannot get $2: it is of Debian's $1, and no Debian mirror is among apt's sources"
        return 1
    fi
    mkdir -p "$lists/lists/partial" "$lists/archives/partial" "$lists/none"
    : >"$lists/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror" "$1" >"$lists/sources.list"
    if ! with_suite "$1" apt-get update >>"$apt_log" 2>&1; then
        say "cannot get $2: no package list of $1: $(apt_reason)"
        return 1
    fi
    : >"$lists/fetched"
}

close_suites() {
    rm -rf "${cache:?}"/suite-*
}

# libblkio is in Debian from trixie on and needs only an old libc, so that bookworm takes it from there.
unpack_blkio() {
    [ -e "$cache/blkio" ] && return 0
    refresh_lists
    if with_apt apt-cache policy libblkio1 | grep -q 'Candidate: [0-9]'; then
        unpack blkio libblkio1 with_apt apt-get
    else
        open_suite trixie libblkio1 && unpack blkio libblkio1 with_suite trixie apt-get
    fi
}

# QEMU of a later suite $1 at $cache/qemu-$1: its program, the libraries that its loader maps, firmware, and a script
# that runs it with these. 38 MB are fetched, and 70 MB kept.
unpack_qemu() {
    [ -e "$cache/qemu-$1" ] && return 0
    refresh_lists
    open_suite "$1" "QEMU of $1" || return 1
    part=$cache/qemu-$1.part
    rm -rf "$part"
    mkdir -p "$part/root"
    say "unpacking QEMU of $1 below $cache/qemu-$1"
    status=0
    if with_suite "$1" apt-get --yes --no-install-recommends --download-only install qemu-system-x86 \
        >>"$apt_log" 2>&1 </dev/null \
        && find "$cache/suite-$1/archives" -name '*.deb' -exec dpkg-deb -x '{}' "$part/root" ';' >>"$apt_log" 2>&1 \
        && pick_qemu "$part/root" "$part/picked" >>"$apt_log" 2>&1; then
        mv "$part/picked" "$cache/qemu-$1"
    else
        say "cannot get QEMU of $1: $(apt_reason)"
        status=1
    fi
    rm -rf "$part"
    return $status
}

# Copies to $2 what QEMU needs to run, out of the packages that are unpacked at $1. At the end it must run.
pick_qemu() {
    loader=$(find "$1/usr/lib" -name 'ld-linux*.so.*' -type f | head -n 1)
    libraries=$("$loader" --library-path "${loader%/*}" --list "$1/usr/bin/qemu-system-x86_64" \
        | sed -n "s|^.* => \\($1.*\\) (0x.*\$|\\1|p")
    mkdir -p "$2/lib" "$2/firmware"
    # shellcheck disable=SC2086  # a list of paths: neither $cache's nor Debian's have blanks
    cp -L $libraries "$2/lib/" \
        && cp "$loader" "$2/lib/loader" \
        && cp "$1/usr/bin/qemu-system-x86_64" "$2/program" \
        && cp -L "$1"/usr/share/seabios/*.bin "$1"/usr/share/qemu/*.bin "$1"/usr/share/qemu/*-virtio.rom "$2/firmware/" \
        || return 1
    cat >"$2/qemu-system-x86_64" <<'SCRIPT'
#!/bin/sh
# QEMU of a later Debian suite, run by the loader and with the libraries and firmware that it was built for.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
exec "$here/lib/loader" --library-path "$here/lib" "$here/program" -L "$here/firmware" "$@"
SCRIPT
    chmod +x "$2/qemu-system-x86_64" && "$2/qemu-system-x86_64" --version
}

# The package that has library $1, by Debian's rule: librte_eal.so.23 is in librte-eal23, libnl-3.so.200 in libnl-3-200.
library_package() {
    case $1 in
        libmlx[45].so.*) echo ibverbs-providers ;;
        libtcmalloc.so.*) echo libgoogle-perftools4 ;;
        libsnappy.so.1) echo libsnappy1v5 ;;
        libceph-common.so.*) echo librados2 ;;
        *) printf '%s\n' "$1" | sed -e 's/_/-/g' -e 's/\([0-9]\)\.so\./\1-/' -e 's/\.so\.//' ;;
    esac
}

# Libraries that the programs $2... need and that are neither on this system nor in folder $1.
missing_libraries() {
    folder=$1
    shift
    LD_LIBRARY_PATH=$folder ldd "$@" 2>/dev/null | sed -n 's/^[[:space:]]*\([^ ]*\) => not found$/\1/p' | sort -u
}

# Packages $4... at $cache/$1 with the libraries of all that are not on this system; $2 is what they are called together.
# $3 is a function that prints which of them are missing of what is unpacked in $part/root, given the folders of those
# that are there. Libraries of libraries come to light one round after the other; five are twice what it takes.
unpack_whole() {
    name=$1
    title=$2
    list_missing=$3
    shift 3
    packages=$*
    say "unpacking $title below $cache/$name"
    part=$cache/$name.part
    rm -rf "$part"
    mkdir -p "$part/root"
    for _ in 1 2 3 4 5; do
        mkdir "$part/debs"
        # shellcheck disable=SC2086  # one word a package
        if ! (cd "$part/debs" && with_apt apt-get download $packages) >>"$apt_log" 2>&1; then
            say "cannot get $title: $(apt_reason)"
            break
        fi
        for deb in "$part"/debs/*.deb; do
            dpkg-deb -x "$deb" "$part/root" >>"$apt_log" 2>&1
        done
        rm -r "$part/debs"
        # Some packages have their libraries below /lib, which on a system is the same folder.
        if [ -d "$part/root/lib" ]; then
            cp -a "$part/root/lib/." "$part/root/usr/lib/"
            rm -r "$part/root/lib"
        fi
        missing=$("$list_missing" "$(echo "$part"/root/usr/lib/*-linux-gnu*)")
        if [ -z "$missing" ]; then
            rm -rf "${cache:?}/$name"
            mv "$part/root" "$cache/$name"
            rm -rf "$part"
            return 0
        fi
        packages=$(for library in $missing; do library_package "$library"; done | sort -u)
    done
    rm -rf "$part"
    say "cannot get $title with all of its libraries, see $apt_log"
    return 1
}

missing_of_dpdk() {
    missing_libraries "$1" "$part/root/usr/bin/dpdk-testpmd" "$1"/librte_*.so.*
}

# DPDK's test program with the drivers that it is used with, its own back-end (net_vhost) among them.
unpack_dpdk() {
    for driver in "$cache"/dpdk/usr/lib/*/librte_net_vhost.so.*; do
        [ -e "$driver" ] && return 0
    done
    refresh_lists
    abi=$(with_apt apt-cache depends --important dpdk-dev 2>/dev/null | sed -n 's/^ *Depends: librte-eal//p')
    unpack_whole dpdk dpdk-testpmd missing_of_dpdk \
        dpdk-dev "librte-net-virtio$abi" "librte-net-vhost$abi" "librte-mempool-ring$abi"
}

# systemd of a later suite $1 at $cache/systemd-$1, with the libraries that it was built for: an upper layer of this
# machine's own /usr for tests/systemd. 47 MB are kept.
unpack_systemd() {
    [ -e "$cache/systemd-$1" ] && return 0
    refresh_lists
    open_suite "$1" "systemd of $1" || return 1
    part=$cache/systemd-$1.part
    rm -rf "$part" "$cache/suite-$1/archives"
    mkdir -p "$part" "$cache/suite-$1/archives/partial"
    say "unpacking systemd of $1 below $cache/systemd-$1"
    status=0
    if with_suite "$1" apt-get --yes --no-install-recommends --download-only install systemd \
        >>"$apt_log" 2>&1 </dev/null \
        && find "$cache/suite-$1/archives" -name '*.deb' -exec dpkg-deb -x '{}' "$part" ';' >>"$apt_log" 2>&1 \
        && [ -x "$part/usr/lib/systemd/systemd" ]; then
        mv "$part" "$cache/systemd-$1"
    else
        say "cannot get systemd of $1: $(apt_reason)"
        status=1
    fi
    rm -rf "$part"
    return $status
}

missing_of_ceph() {
    missing_libraries "$1:$1/ceph" "$part/root/usr/bin/ceph-mon" "$part/root/usr/bin/ceph-osd" \
        "$part/root/usr/bin/rbd" "$part/root/usr/bin/ceph-authtool" "$part"/root/usr/lib/python3/dist-packages/r*.so
}

# A Ceph cluster of one machine: monitor, object store, tools, and the modules rados and rbd for the system's Python. 50 MB
# are fetched, and 200 MB kept.
unpack_ceph() {
    [ -e "$cache/ceph" ] && return 0
    refresh_lists
    unpack_whole ceph Ceph missing_of_ceph \
        ceph-mon ceph-osd ceph-base ceph-common librados2 librbd1 python3-rados python3-rbd
}

# What checks the XML of `vuproc hint libvirt`: libvirt's schemas, and xmllint.
unpack_schemas() {
    unpack_own xmllint libxml2-utils || true
    [ -e "$cache/libvirt" ] && return 0
    refresh_lists
    for package in libvirt-common libvirt0; do
        with_apt apt-cache policy "$package" | grep -q 'Candidate: [0-9]' || continue
        unpack libvirt "$package" with_apt apt-get || continue
        [ -e "$cache/libvirt/usr/share/libvirt/schemas" ] && return 0
        rm -rf "${cache:?}/libvirt"
    done
    say "cannot get libvirt's schemas: no package here has them"
    return 1
}

# Xen of bookworm, whose hypercalls tests/xen knows, and a kernel that can be its first domain: 70 MB are fetched, and
# 330 MB kept.
unpack_xen() {
    [ -e "$cache/xen" ] && [ -e "$cache/xen-linux" ] && return 0
    refresh_lists
    open_suite bookworm Xen || return 1
    kernel=$(kernel_package linux-image-amd64 with_suite bookworm apt-cache)
    if [ -z "$kernel" ]; then
        say "cannot get a kernel for Xen: apt knows no linux-image-amd64"
        return 1
    fi
    unpack xen xen-hypervisor-4.17-amd64 with_suite bookworm apt-get \
        && unpack xen-linux "$kernel" with_suite bookworm apt-get
}

# Everything that can be had here; with $1 "unpacked" nothing is installed. Never fails: what is missing was said.
get_guests() {
    if ! have apt-get || ! have dpkg-deb; then
        say "no apt-get here: guests are used only where they are installed already"
        return 0
    fi
    have linux.uml || unpack_own uml user-mode-linux || true
    build_uml || true
    unpack_own busybox busybox-static || true
    unpack_kernel || true
    unpack_blkio || true
    unpack_dpdk || true
    unpack_own passt passt || true
    unpack_schemas || true
    unpack_qemu trixie || true
    unpack_later_kernel trixie || true
    [ -z "${VUPROC_LONG:-}${VUPROC_SID:-}" ] || unpack_qemu sid || true
    [ -z "${VUPROC_LONG:-}" ] || unpack_xen || true
    [ -z "${VUPROC_LONG:-}" ] || unpack_systemd trixie || true
    [ -z "${VUPROC_LONG:-}" ] || unpack_ceph || true
    close_suites
    rm -rf "$cache/apt"
    [ "$1" = all ] || return 0
    for pair in qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs systemd-analyze:systemd; do
        program=${pair%%:*}
        package=${pair#*:}
        PATH=$PATH:/usr/sbin:/sbin have "$program" && continue
        if can_install; then
            install_package "$package" || true
        else
            say "cannot install $package: that needs root"
        fi
    done
}

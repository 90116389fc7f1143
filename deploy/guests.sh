# shellcheck shell=sh disable=SC2154
# How the clients that play the guest are had on Debian and its kin. Sourced by `setup` after lib.sh.
#
# Only QEMU is installed, since it comes with a tree of libraries. Everything else is unpacked below $cache and found
# there by vuproc.testing.vms. Mirrors are those that apt already knows; the system's configuration is not touched.
# A thing that cannot be had is said with the reason, and the rest goes on.

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
    with_apt apt-get update >>"$apt_log" 2>&1 || say "apt-get update failed, going on with the lists that are there"
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

# The package that a meta-package stands for: linux-image-cloud-amd64 names the kernel of the day.
kernel_package() {
    with_apt apt-cache depends --important "$1" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

unpack_kernel() {
    [ -e "$cache/linux" ] && return 0
    refresh_lists
    meta=linux-image-cloud-$(dpkg --print-architecture)
    kernel=$(kernel_package "$meta")
    if [ -z "$kernel" ]; then
        say "cannot get a kernel for QEMU: apt knows no $meta"
        return 1
    fi
    unpack linux "$kernel" with_apt apt-get
}

# libblkio is in Debian from trixie on and needs only an old libc, so bookworm takes it from the later suite: through
# a private apt configuration with the mirror and key that the system's own Debian suite has.
later_suite=trixie

with_later_apt() {
    tool=$1
    shift
    "$tool" -o Dir::Etc::SourceList="$cache/later/sources.list" -o Dir::Etc::SourceParts="$cache/later/none" \
        -o Dir::State::Lists="$cache/later/lists" -o Dir::Cache="$cache/later" -o Acquire::Languages=none \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

unpack_blkio() {
    [ -e "$cache/blkio" ] && return 0
    refresh_lists
    if with_apt apt-cache policy libblkio1 | grep -q 'Candidate: [0-9]'; then
        unpack blkio libblkio1 with_apt apt-get
        return
    fi
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # shellcheck disable=SC2016  # the dollars are apt's
    mirror=$(with_apt apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' \
        | sed -n "s/^Debian $codename //p" | head -n 1)
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    if [ -z "$mirror" ] || ! [ -e "$keys" ]; then
        say "cannot get libblkio1: this system's suite has none, and no Debian mirror is among apt's sources"
        return 1
    fi
    mkdir -p "$cache/later/lists/partial" "$cache/later/archives/partial" "$cache/later/none"
    printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror" "$later_suite" >"$cache/later/sources.list"
    status=0
    if with_later_apt apt-get update >>"$apt_log" 2>&1; then
        unpack blkio libblkio1 with_later_apt apt-get || status=1
    else
        say "cannot get libblkio1: no package list of $later_suite: $(apt_reason)"
        status=1
    fi
    rm -rf "$cache/later"
    return $status
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

# Everything that can be had here; with $1 "unpacked" nothing is installed. Never fails: what is missing was said.
get_guests() {
    if ! have apt-get || ! have dpkg-deb; then
        say "no apt-get here: guests are used only where they are installed already"
        return 0
    fi
    have linux.uml || unpack_own uml user-mode-linux || true
    unpack_own busybox busybox-static || true
    unpack_kernel || true
    unpack_blkio || true
    unpack_schemas || true
    rm -rf "$cache/apt"
    [ "$1" = all ] || return 0
    for pair in qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs; do
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

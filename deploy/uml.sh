# shellcheck shell=sh disable=SC2154
# How a User-Mode Linux with more drivers is had than Debian's kernels have: built from Debian's source of the newest
# kernel. Sourced by `setup` after guests.sh.
#
# 167 MB are fetched, some 260 seconds of a CPU are used, and 6 MB kept. Nothing is installed: tools that
# the build needs and that are not on this machine are unpacked, too. It is built anew when `uml.config` is another.

uml_suite=trixie-backports

# Where a tool that is not on this machine comes from: its package, and those of libraries that may be missing, too.
tool_packages() {
    case $1 in
        m4) echo m4 libsigsegv2 ;;
        bc) echo bc libreadline8 ;;
        xz) echo xz-utils ;;
        *) echo "$1" ;;
    esac
}

# Unpacks the tools of a kernel's build that are not on this machine below $1.
unpack_tools() {
    mkdir -p "$1/debs"
    for tool in make flex bison m4 bc xz; do
        have "$tool" && continue
        # shellcheck disable=SC2046  # one word a package
        (cd "$1/debs" && with_apt apt-get download $(tool_packages "$tool")) >>"$apt_log" 2>&1 || return 1
    done
    for deb in "$1"/debs/*.deb; do
        [ -e "$deb" ] || continue
        dpkg-deb -x "$deb" "$1" >>"$apt_log" 2>&1 || return 1
    done
    rm -r "$1/debs"
}

# Runs $2... with the tools below $1, besides those of this machine.
with_tools() {
    (
        tools=$1
        shift
        export PATH="$PATH:$tools/usr/bin"
        libraries=$(echo "$tools"/usr/lib/*-linux-gnu "$tools"/lib/*-linux-gnu | tr ' ' ':')
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries"
        if [ -e "$tools/usr/bin/m4" ]; then
            export M4="$tools/usr/bin/m4"
        fi
        if [ -e "$tools/usr/share/bison" ]; then
            export BISON_PKGDATADIR="$tools/usr/share/bison"
        fi
        "$@"
    )
}

# Unpacks at $2 what of the source in the package at $1 a User-Mode Linux may be built from: half of it.
unpack_source() {
    mkdir -p "$2" "$1/deb"
    dpkg-deb -x "$1"/*.deb "$1/deb" || return 1
    set -- "$1" "$2" --exclude='*/Documentation/*/*' --exclude='*/tools/testing/*'
    for unused in arch/arm arch/arm64 arch/mips arch/powerpc arch/s390 drivers/gpu drivers/infiniband drivers/media \
        drivers/net/ethernet drivers/net/wireless drivers/scsi drivers/staging sound/soc; do
        set -- "$@" --exclude="*/$unused/*.[chS]" --exclude="*/$unused/*.dts*"
    done
    part=$1
    target=$2
    shift 2
    with_tools "$part/tools" xz -T0 -dc "$part"/deb/usr/src/linux-source-*.tar.xz \
        | tar -x -C "$target" --strip-components=1 "$@"
}

# Builds it in $1, as $1/linux, with the compiler $2.
make_kernel() {
    set -- "$1" with_tools "$1/tools" make -C "$1/source" ARCH=um "CC=$2" "HOSTCC=$2"
    part=$1
    shift
    "$@" KCONFIG_ALLCONFIG="$here/uml.config" allnoconfig || return 1
    # What this kernel does not know, or not together with the rest, is left out without a word.
    if grep -v -x -F -f "$part/source/.config" "$here/uml.config" | grep '^CONFIG_'; then
        echo 'E: the kernel cannot be configured as uml.config has it'
        return 1
    fi
    "$@" "-j$(getconf _NPROCESSORS_ONLN)" linux && cp "$part/source/linux" "$part/linux" && "$part/linux" --version
}

# The kernel at $cache/uml-drivers, with what it was configured by beside it.
build_uml() {
    built=$cache/uml-drivers
    [ -x "$built/linux" ] && cmp -s "$here/uml.config" "$built/uml.config" && return 0
    if [ "$(uname -m)" != x86_64 ]; then
        say "cannot build User-Mode Linux: it is built for x86-64 alone"
        return 1
    fi
    refresh_lists
    open_suite "$uml_suite" "the source of a newer Linux" || return 1
    source=$(with_suite "$uml_suite" apt-cache depends --important linux-source 2>/dev/null \
        | sed -n 's/^ *Depends: \(linux-source-[0-9].*\)$/\1/p' | head -n 1)
    if [ -z "$source" ]; then
        say "cannot get the source of a newer Linux: $uml_suite has none"
        return 1
    fi
    part=$cache/uml-drivers.part
    rm -rf "$part"
    mkdir -p "$part"
    say "building User-Mode Linux from $source below $built; that takes some minutes"
    status=1
    if ! { unpack_tools "$part/tools" && (cd "$part" && with_suite "$uml_suite" apt-get download "$source") \
        >>"$apt_log" 2>&1; }; then
        say "cannot get $source: $(apt_reason)"
    elif ! { unpack_source "$part" "$part/source" && make_kernel "$part" "$compiler"; } >"$cache/uml-build.log" 2>&1; then
        say "cannot build User-Mode Linux, see $cache/uml-build.log"
    else
        rm -rf "$built"
        mkdir -p "$built"
        mv "$part/linux" "$built/linux"
        cp "$here/uml.config" "$built/uml.config"
        status=0
    fi
    rm -rf "$part"
    return $status
}

# shellcheck shell=sh disable=SC2154
# The Debian package, of deploy/debian. Sourced by `package`.

make_deb() {
    need dpkg-buildpackage:dpkg-dev dh:debhelper dh_python3:dh-python lintian:lintian \
        mmdebstrap:mmdebstrap
    get_tools
    tree=$work/vuproc-$version
    copy_sources "$tree"
    pack "$work/vuproc_$version.orig" "$tree"
    get_vendored "$work/vendor"
    pack "$work/vuproc_$version.orig-vendor" "$work/vendor"
    mv "$work/vendor" "$tree/vendor"
    cp -R "$tree/deploy/debian" "$tree/debian"
    build_dependencies "$tree"
    say "building the Debian package"
    (cd "$tree" && exec dpkg-buildpackage --jobs-try="$(nproc)" --unsigned-source --unsigned-changes) >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        fail "it cannot be built"
    }
    say "asking lintian"
    # Not with --show-overrides, which has it fail for what is overridden, too.
    lintian --allow-root --fail-on error,warning "$work"/*.changes
    try_deb "$work"/vuproc_*_"$(dpkg --print-architecture)".deb
    find "$work" -maxdepth 1 -name 'vuproc*' ! -type d -exec cp '{}' "$out/" ';'
    say "vuproc_$version is in $out"
}

# Installs what tree $1 is built with, if that may be; else says what is missing.
build_dependencies() {
    (cd "$1" && dpkg-checkbuilddeps) >"$work/log" 2>&1 && return 0
    if can_install; then
        refresh_lists
        say "installing what the package is built with"
        DEBIAN_FRONTEND=noninteractive with_apt apt-get build-dep --yes --no-install-recommends "$1" \
            >>"$apt_log" 2>&1 </dev/null && return 0
        fail "cannot make it: $(apt_reason)"
    fi
    cat "$work/log" >&2
    fail "cannot make it, something is missing"
}

# Installs package $1 into a new root of this release of Debian over an older one, has it serve a disk there, and
# removes it again.
try_deb() {
    if [ "$(id -u)" != 0 ]; then
        say "it is not tried: that needs root"
        return 0
    fi
    say "installing it into a new Debian, and serving a disk from it"
    make_root "$work/root" "$(dpkg --print-architecture)" apt python3
    cp "$1" "$work/root/tmp/vuproc.deb"
    # The same, as if it were an older one.
    dpkg-deb --raw-extract "$1" "$work/older"
    sed -i 's/^Version: .*/Version: 0~older/' "$work/older/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone --build "$work/older" "$work/root/tmp/older.deb" >/dev/null
    cp "$here/packaging/smoke.py" "$here/packaging/try-deb" "$work/root/tmp/"
    cat >"$work/enter" <<'ENTER'
set -eu
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh /tmp/try-deb
ENTER
    unshare --mount --pid --fork sh "$work/enter" "$work/root" >"$work/log" 2>&1 || {
        tail -n 40 "$work/log" >&2
        fail "the installed package does not work"
    }
    grep -e works -e "nothing is left" "$work/log"
}

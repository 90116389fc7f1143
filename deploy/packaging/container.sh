# shellcheck shell=sh disable=SC2154
# An image of the wheel, as an archive. Sourced by `package`.

make_container() {
    need buildah:buildah mmdebstrap:mmdebstrap
    [ -e /etc/containers/policy.json ] || { can_install && install_package containers-common; } || true
    /usr/bin/python3 -m venv "$work/pip-of-debian" || fail "cannot make it, this is missing: python3-venv"
    minor=$(/usr/bin/python3 -c 'import sys; print("%d%d" % sys.version_info[:2])')
    wheel=$(find "$out" -name "vuproc-$version-cp$minor-*_$(uname -m).whl" | head -n 1)
    [ -n "$wheel" ] || fail "cannot make it, there is no wheel in $out for Debian's Python: sh deploy/package wheel"
    mkdir -p "$work/context/wheels"
    pip_of_debian wheel --quiet --wheel-dir "$work/context/wheels" "$wheel" \
        || fail "what vuproc depends on cannot be had"
    pip_of_debian download --quiet --no-deps --dest "$work/pip" pip
    cp "$work"/pip/pip-*.whl "$work/context/wheels/pip.whl"
    make_base
    say "building the image"
    images build --quiet --isolation chroot --timestamp "$SOURCE_DATE_EPOCH" --build-arg BASE=localhost/vuproc-base \
        --tag "localhost/vuproc:$version" --file "$here/container/Containerfile" "$work/context" >/dev/null
    rm -f "$out/vuproc-$version-oci.tar"
    images push --quiet "localhost/vuproc:$version" "oci-archive:$out/vuproc-$version-oci.tar:vuproc:$version"
    say "it is $out/vuproc-$version-oci.tar"
}

# What vuproc depends on is fetched for the Python that will be in the image, whichever ours is.
pip_of_debian() {
    "$work/pip-of-debian/bin/python" -m pip --disable-pip-version-check "$@"
}

# buildah, with its images in a folder of this run: nothing stays behind. Layers are plain folders, for a file system
# of layers may be refused in a container.
images() {
    buildah --root "$work/images" --runroot "$work/images-run" --storage-driver vfs "$@"
}

# Debian's Python and its libraries, and no more of Debian: packages are unpacked, and none is configured.
make_base() {
    say "making the base of Debian's packages"
    # An ordinary user unpacks as who it is; in a user namespace, files would be another's here.
    if [ "$(id -u)" = 0 ]; then set --; else set -- --mode=chrootless; fi
    make_root "$work/base" "$(dpkg --print-architecture)" extract python3 "$@"
    (cd "$work/base" && rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/lintian var/lib/apt var/cache \
        usr/bin/dpkg* usr/bin/pdb3* usr/bin/pydoc3* bin/tar)
    printf 'root:x:0:0::/:/nonexistent\nvuproc:x:65532:65532::/tmp:/nonexistent\n' >"$work/base/etc/passwd"
    printf 'root:x:0:\nvuproc:x:65532:\n' >"$work/base/etc/group"
    mkdir -p "$work/base/etc/vuproc" "$work/base/run/vuproc" "$work/base/tmp" "$work/base/proc" "$work/base/sys"
    chmod 1777 "$work/base/tmp"
    container=$(images from scratch)
    images add --quiet "$container" "$work/base" / >/dev/null
    images config --env PATH=/usr/local/bin:/usr/bin:/bin "$container"
    images commit --quiet "$container" localhost/vuproc-base >/dev/null
    images rm "$container" >/dev/null
}

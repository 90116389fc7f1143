# shellcheck shell=sh disable=SC2034,SC2154
# What every kind of package takes: the sources, their time, tools. Sourced by `package`.

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

# Fails unless each of the programs $1, as PROGRAM:PACKAGE, is there; installs their Debian packages if it can.
need() {
    missing=
    for pair in "$@"; do
        program=${pair%%:*}
        have "$program" && continue
        if can_install && install_package "${pair#*:}" && have "$program"; then
            continue
        fi
        missing="$missing $program (Debian: ${pair#*:})"
    done
    [ -z "$missing" ] || fail "cannot make it, this is missing:$missing"
}

# Copies to folder $1 what belongs to the sources: no builds, caches or environments.
copy_sources() {
    mkdir -p "$1"
    if git -C "$root" rev-parse --git-dir >/dev/null 2>&1; then
        (cd "$root" && git ls-files -z --cached --others --exclude-standard \
            | tar --null --ignore-failed-read --warning=no-failed-read -T - -cf -)
    else
        tar -C "$root" --exclude=./.venv --exclude=./.cache --exclude=./dist --exclude=./build --exclude='*.so' \
            --exclude='*.egg-info' --exclude=__pycache__ --exclude='*.html' -cf - .
    fi | tar -C "$1" -xf -
}

# Packs folder $2 as $1.tar.gz: the same bytes for the same content, whoever and whenever.
pack() {
    tar -C "$(dirname "$2")" --sort=name --owner=0 --group=0 --numeric-owner --mode=u+rw,go=rX \
        --mtime="@$SOURCE_DATE_EPOCH" -cf - "$(basename "$2")" | gzip -9n >"$1.tar.gz"
}

# Has the native modules of tree $1 translated to C by the Python $2, which has Cython, and what is compiled from now on
# compiled by as many compilers as there are CPUs: setuptools alone does all of it one module after another.
translate() {
    jobs=$(nproc)
    printf '[build_ext]\nparallel = %s\n' "$jobs" >"$work/jobs.cfg"
    DIST_EXTRA_CONFIG=$work/jobs.cfg
    export DIST_EXTRA_CONFIG
    (cd "$1" && "$2" -P "$here/packaging/translate.py" "$jobs")
}

# The environment $tools with the tools of pyproject.toml's dependency group `package`.
get_tools() {
    tools=$cache/packaging
    base=$(find_python) || fail "cannot make it, there is no Python 3.11 to 3.14"
    wanted=$("$base" -c 'import sys, tomllib
print(sys.version, *tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"]["package"])' "$root/pyproject.toml")
    if ! [ -x "$tools/bin/python" ] || [ "$(cat "$tools/.wanted" 2>/dev/null)" != "$wanted" ]; then
        say "getting the tools of packaging into $tools"
        "$base" -m venv --clear "$tools"
        "$base" -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["dependency-groups"]["package"], sep="\n")' "$root/pyproject.toml" \
            >"$work/tools.txt"
        "$tools/bin/python" -m pip --disable-pip-version-check install --quiet -r "$work/tools.txt" \
            || fail "cannot get the tools of packaging"
        printf '%s\n' "$wanted" >"$tools/.wanted"
    fi
    PATH=$tools/bin:$PATH
}

# The dependencies that Debian lacks, and what builds them, into folder $1. Their hashes are known.
get_vendored() {
    kept=$cache/debian-vendor
    wanted=$(cat "$here/debian/vendor.txt" "$here/debian/build-tools.txt")
    if [ "$(cat "$kept/wanted" 2>/dev/null)" != "$wanted" ]; then
        say "fetching what Debian has not"
        rm -rf "$kept"
        mkdir -p "$kept"
        python -m pip --disable-pip-version-check download --quiet --no-deps --require-hashes --dest "$kept" \
            --no-binary :all: -r "$here/debian/vendor.txt"
        python -m pip --disable-pip-version-check download --quiet --no-deps --require-hashes --dest "$kept" \
            --only-binary :all: --platform any -r "$here/debian/build-tools.txt"
        printf '%s\n' "$wanted" >"$kept/wanted"
    fi
    mkdir "$1"
    cp "$kept"/*.tar.gz "$kept"/*.whl "$1/"
}

# Prints the address of a Debian mirror that has release $1, if one is among apt's sources.
find_mirror() {
    # shellcheck disable=SC2016  # the dollars are apt's
    with_apt apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' \
        | sed -n "s/^Debian $1 //p" | head -n 1
}

# Makes folder $1 the root of this release of Debian for architecture $2, by mmdebstrap's variant $3, with the
# packages $4 and what they need; further options for it may follow.
make_root() {
    folder=$1 architecture=$2 variant=$3 packages=$4
    shift 4
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    mirror=$(find_mirror "$codename")
    if [ -z "$mirror" ]; then
        # Whose a source is, apt knows by its lists, and an ordinary user has none of its own yet.
        refresh_lists
        mirror=$(find_mirror "$codename")
    fi
    [ -n "$mirror" ] || fail "cannot make it: no Debian mirror is among apt's sources"
    mmdebstrap --quiet --architectures="$architecture" --variant="$variant" --include="$packages" \
        --skip=check/qemu --aptopt='Acquire::Languages "none"' "$@" "$codename" "$folder" "$mirror" \
        2>"$work/mmdebstrap.log" || {
        tail -n 20 "$work/mmdebstrap.log" >&2
        fail "cannot make a root of Debian's $codename for $architecture"
    }
}

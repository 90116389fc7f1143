# shellcheck shell=sh disable=SC2154
# The source distribution and a wheel. Sourced by `package`.

make_wheel() {
    compiler=$(find_compiler) || fail "cannot make it, there is no C compiler"
    get_tools
    copy_sources "$work/source"
    say "building the source distribution, and the wheel from it"
    build_wheel >"$work/log" 2>&1 || {
        tail -n 30 "$work/log" >&2
        fail "it cannot be built"
    }
    # Names the oldest C library that it runs with, from the symbols that it uses.
    auditwheel repair --wheel-dir "$work/wheel" "$work/built"/*.whl
    auditwheel show "$work/wheel"/*.whl
    twine check --strict "$work/built"/*.tar.gz "$work/wheel"/*.whl
    check-wheel-contents "$work/wheel"/*.whl
    cp "$work/built"/*.tar.gz "$work/wheel"/*.whl "$out/"
    try_wheel "$work/wheel"/*.whl
}

# Makes both in $work/built, in an environment with what pyproject.toml asks for.
build_wheel() {
    python -m build --sdist --outdir "$work/built" "$work/source" || return 1
    tar -C "$work" -xf "$work"/built/*.tar.gz
    tree=$work/vuproc-$version
    python -m venv "$work/build"
    python -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' "$tree/pyproject.toml" \
        >"$work/requires.txt"
    "$work/build/bin/python" -m pip --disable-pip-version-check install --quiet -r "$work/requires.txt" || return 1
    translate "$tree" "$work/build/bin/python" || return 1
    # Symbols for a debugger are two thirds of a wheel.
    CC=$compiler CFLAGS="${CFLAGS:-} -g0" "$work/build/bin/python" -m pip --disable-pip-version-check wheel --no-deps \
        --no-build-isolation --wheel-dir "$work/built" "$tree"
}

# Installs wheel $1 into an environment of its own, with what it depends on, and has it serve.
try_wheel() {
    say "installing ${1##*/} into a new environment, and serving a disk from it"
    python -m venv "$work/venv"
    "$work/venv/bin/python" -m pip --disable-pip-version-check install --quiet "$1"
    "$work/venv/bin/python" "$here/packaging/smoke.py"
}

# shellcheck shell=sh disable=SC2034
# What every script in this directory shares: where things are, how they speak, which Python they take.
# Sourced, never run; the caller sets `here` to this directory first.

root=$(CDPATH='' cd -- "${here:?}/.." && pwd)
venv=${VUPROC_VENV:-$root/.venv}

# Programs and kernels that were unpacked rather than installed live here: in the checkout if it can be written.
if [ -n "${VUPROC_CACHE:-}" ]; then
    cache=$VUPROC_CACHE
elif [ -w "$root" ]; then
    cache=$root/.cache
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/vuproc
fi

say() {
    printf 'vuproc: %s\n' "$*"
}

fail() {
    printf 'vuproc: %s\n' "$*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# Succeeds if program $1 is a Python that this project supports.
python_fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' >/dev/null 2>&1
}

# Prints the Python to use: $VUPROC_PYTHON, else python3, else the newest versioned one.
find_python() {
    for candidate in ${VUPROC_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if have "$candidate" && python_fits "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# Prints the C compiler to use: $CC, else the usual names.
find_compiler() {
    for candidate in ${CC:-cc gcc clang}; do
        if have "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

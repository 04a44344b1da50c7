#!/bin/sh
# Creates .venv with the first Python 3.11 or later it finds; PYTHON=/path/to/python decides otherwise.
set -eu

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || { echo "PYTHON=$PYTHON is not a Python 3.11 or later." >&2; exit 1; }
    python=$PYTHON
else
    python=
    for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if fits "$name"; then python=$name; break; fi
    done
    if [ -z "$python" ]; then
        found=$(python3 --version 2>/dev/null || echo "there is no python3 here")
        echo "Penstock needs Python 3.11 or later; $found." >&2
        echo "Install one (Debian 12, Ubuntu 24.04 or later: apt install python3 python3-venv), or name one: make serve PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
fi

rm -rf .venv
if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    "$python" -m venv .venv
elif "$python" -c 'import pip, venv' >/dev/null 2>&1; then
    # Debian keeps ensurepip in a package of its own; the pip that is here can fill the environment instead.
    "$python" -m venv --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet pip || { rm -rf .venv; exit 1; }
else
    echo "$("$python" --version) lacks venv and pip: apt install python3-venv (or your system's package of that name)." >&2
    exit 1
fi
echo "created .venv with $(.venv/bin/python --version)"

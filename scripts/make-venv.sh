#!/bin/sh
# make-venv.sh PYTHON: .venv of this checkout with the package (editable) and what pyproject.toml pins.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

python=$1
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    die "$python is not Python 3.11 or newer: name one with PYTHON=..."
"$python" -c 'import ensurepip' 2>/dev/null || scripts/install-system.sh
mkdir -p .kuasar
if ! [ -x .venv/bin/python ]; then
    say "making .venv with $("$python" --version)"
    quietly .kuasar/venv.log "$python" -m venv .venv
fi
say "installing the pinned Python packages"
quietly .kuasar/venv.log .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --editable '.[dev]'

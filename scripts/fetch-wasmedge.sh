#!/bin/sh
# Puts the wasmedge program (Debian trixie) with everything it needs, LLVM and the C library included, below .kuasar/wasmedge of
# this checkout: 42 MB to fetch, about 170 MB on disk. Nothing is installed; the engine is started through its own loader.
set -eu
here=$(dirname "$0")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
dest=$(realpath "$here/..")/.kuasar/wasmedge

"$here/fetch-deb.sh" --with-dependencies trixie wasmedge "$dest"
# documentation, message catalogues and character sets are not looked at
rm -rf "$dest"/usr/share "$dest"/etc "$dest"/var "$dest"/usr/lib/*/gconv

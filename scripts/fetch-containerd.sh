#!/bin/sh
# Puts containerd 2.1 (Debian forky) below .kuasar/containerd of this checkout. It needs nothing newer than Debian 12's libc.
# Nothing is installed: the programs are run from .kuasar/containerd/usr/bin.
set -eu
here=$(dirname "$0")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
dest=$(realpath "$here/..")/.kuasar/containerd

"$here/fetch-deb.sh" forky containerd "$dest"
"$dest/usr/bin/containerd" --version >/dev/null || die "containerd of forky does not run on this machine: see above"

#!/bin/sh
# Puts gVisor's runsc (Debian bookworm-backports: the one of bookworm knows no systrap) below .kuasar/runsc of this checkout.
# Nothing is installed. It is one static program: 9 MB to fetch, 30 MB on disk.
set -eu
here=$(dirname "$0")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
dest=$(realpath "$here/..")/.kuasar/runsc

"$here/fetch-deb.sh" bookworm-backports runsc "$dest"
"$dest/usr/bin/runsc" --version >/dev/null || die "runsc does not run on this machine: see above"

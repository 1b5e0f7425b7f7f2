#!/bin/sh
# Installs the Debian packages that the project needs. Idempotent: when all are there it only asks dpkg.
# Needs root for installing. Used by the Makefile and by CI.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"

# python3-venv: our .venv    runc, crun: containers    containernetworking-plugins, iproute2: pod networks
# busybox-static: the test images    make: this project's commands    ca-certificates: package indexes
# qemu-system-x86: the microVM engine; its qemu-system-common has virtiofsd    debian-archive-keyring: packages of the guest image
# erofs-utils: what containerd's erofs snapshotter makes its layers with
# e2fsprogs: disks of the tests, and what containerd's blockfile snapshotter copies
# erofs-utils: packs root file systems of directories for machines that share nothing (Firecracker)
PACKAGES="python3 python3-venv runc crun containernetworking-plugins iproute2 busybox-static make ca-certificates
    qemu-system-x86 debian-archive-keyring e2fsprogs erofs-utils"

missing=
for package in $PACKAGES; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
        installed) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

[ "$(id -u)" = 0 ] || die "root is needed to install:$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
say "package lists"
quietly "$log" apt-get -o DPkg::Lock::Timeout=120 update -q
say "installing:$missing"
# shellcheck disable=SC2086 # a list of names
quietly "$log" apt-get -o DPkg::Lock::Timeout=120 install -q -y --no-install-recommends $missing

#!/bin/sh
# Puts vhost-device-vsock (Debian sid; needs nothing but a C library of 2.34 or newer) below .kuasar/vhost-device-vsock of this
# checkout: 1 MB. Nothing is installed, and only tests of the channel vhost-user-vsock use it.
set -eu
here=$(dirname "$0")
dest=$(realpath "$here/..")/.kuasar/vhost-device-vsock

"$here/fetch-deb.sh" sid vhost-device-vsock "$dest"
rm -rf "$dest/usr/share"

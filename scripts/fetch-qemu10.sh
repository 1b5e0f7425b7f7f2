#!/bin/sh
# Puts QEMU 10 (Debian trixie) with everything it needs, the C library included, below .kuasar/qemu10 of this checkout: about 60 MB
# to fetch, 130 MB on disk. Nothing is installed; .kuasar/qemu10/qemu-system-x86_64 starts it through its own loader.
set -eu
here=$(dirname "$0")
# shellcheck source-path=SCRIPTDIR
. "$here/lib.sh"
dest=$(realpath "$here/..")/.kuasar/qemu10

"$here/fetch-deb.sh" --with-dependencies trixie qemu-system-x86 "$dest"
rm -rf "$dest"/usr/share/doc "$dest"/usr/share/locale "$dest"/usr/share/man "$dest"/usr/lib/*/gconv
cat >"$dest/qemu-system-x86_64" <<SCRIPT
#!/bin/sh
libraries=\$(echo $dest/usr/lib/*-linux-gnu)
exec "\$libraries"/ld-linux-*.so.* --library-path "\$libraries" $dest/usr/bin/qemu-system-x86_64 -L $dest/usr/share/seabios -L $dest/usr/share/qemu "\$@"
SCRIPT
chmod 755 "$dest/qemu-system-x86_64"

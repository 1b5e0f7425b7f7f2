#!/bin/sh
# boot.sh ROOT CHECKOUT: become systemd, in the new namespaces that the caller has made, with ROOT for root directory. The machine's
# programs and the checkout are there, too; systemd's own services are masked, so that none of them touches the kernel's settings.
set -eu
root=$1 checkout=$2
mount --make-rprivate /
mount --bind "$root" "$root"
cd "$root"
for name in usr proc sys dev run tmp ".$checkout"; do mkdir -p "$name"; done
for name in bin sbin lib lib64; do [ -e $name ] || ln -s usr/$name $name; done
mount --rbind /usr usr
mount -o remount,bind,ro usr
mount --bind "$root.local" usr/local
mount --rbind "$checkout" ".$checkout"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
if grep -q '^cgroup ' /proc/self/mounts; then
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    sed -n 's/^cgroup [^ ]*\/\([^ /]*\) cgroup .*/\1/p' /proc/self/mounts | sort -u >run/hierarchies
    while read -r name; do
        mkdir -p "sys/fs/cgroup/$name"
        case $name in systemd) options=none,name=systemd ;; *) options=$name ;; esac
        mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/$name"
    done <run/hierarchies
    rm run/hierarchies
    mkdir sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do cp -a "/dev/$name" "dev/$name"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/systemd/system
for unit in /usr/lib/systemd/system/*; do
    name=${unit##*/}
    case $name in
    *@*) ;;
    *.service | *.socket | *.mount | *.automount | *.timer | *.path) ln -s /dev/null "run/systemd/system/$name" ;;
    esac
done
mkdir -p .old
pivot_root . .old
umount -l /.old
rmdir /.old
ip link set lo up
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no --log-target=console --log-level=info

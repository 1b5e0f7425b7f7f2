"""``python -m tests.pure_v2 [PYTEST ARGUMENT...]``: tests in a machine that has cgroup v2 and nothing else.

The machine (QEMU, the guest's kernel) has this one's root, read through virtio-fs, with a layer in memory above it:
what is installed here is there, and nothing here changes. Ten times slower without KVM. Exits with pytest's
code, or with 70 when the machine ended without one.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from guest import manifest
from guest.closure import KernelModules, Unpacked
from guest.image import write_initrd
from scripts.layout import CHECKOUT, GUEST_IMAGE

WORK = f"{CHECKOUT}/.kuasar/guest"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MEMORY_MIB = 4096
FIRST_MODULES = ("virtio_pci", "virtiofs", "overlay")
MODULES = (
    # what containerd, CNI's plugins and our engines ask a kernel for
    *("veth", "bridge", "br_netfilter", "tun", "dummy", "loop", "erofs"),
    *("nf_tables", "nft_compat", "nft_chain_nat", "nf_nat", "nf_conntrack", "nf_conntrack_netlink"),
    *("xt_MASQUERADE", "xt_comment", "xt_conntrack", "xt_addrtype", "xt_mark", "xt_multiport", "xt_nat"),
    *("cls_u32", "act_mirred", "sch_ingress"),
)
_FAILED = 70
_CODE = re.compile(rb"pytest ended with (\d+)")
_INIT = """#!/bin/busybox sh
PATH=/bin
busybox mount -t devtmpfs dev /dev && busybox mount -t proc proc /proc && busybox mount -t sysfs sysfs /sys
exec </dev/console >/dev/console 2>&1
for module in $(busybox cat /modules/order); do busybox insmod "/modules/$module.ko"; done
busybox mkdir /lower /layer
busybox mount -t virtiofs -o ro host /lower && busybox mount -t tmpfs -o size=3g layer /layer
busybox mkdir /layer/upper /layer/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work root /newroot
for each in dev proc sys; do busybox mount -o move "/$each" "/newroot/$each"; done
exec busybox switch_root /newroot /bin/sh INSIDE
"""
_INSIDE = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 SLOWNESS=10
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
for file in FILES; do BUSYBOX insmod "$file" || echo "no module $file"; done
cd CHECKOUT
cat /sys/fs/cgroup/cgroup.controllers
.venv/bin/python -m pytest -p no:cacheprovider --color=no ARGUMENTS
echo "pytest ended with $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def main(argv: Sequence[str]) -> int:
    """The command."""
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="v2-", dir=f"{CHECKOUT}/.kuasar") as directory:
        return _run(directory, argv)


def _run(directory: str, arguments: Sequence[str]) -> int:
    unpacked = Unpacked(f"{WORK}/unpacked")
    (release,) = os.listdir(unpacked.path("lib/modules"))
    modules_from = unpacked.path(f"lib/modules/{release}")
    kernel = KernelModules(modules_from)
    files = [f"{modules_from}/{kernel.file(name)}" for name in kernel.in_order(MODULES)]
    words = {
        "FILES": " ".join(files),
        "BUSYBOX": unpacked.path("bin/busybox"),
        "CHECKOUT": CHECKOUT,
        "ARGUMENTS": shlex.join(arguments),
    }
    inside = f"{directory}/inside"
    with open(inside, "w", encoding="utf-8") as script:
        script.write(re.sub("|".join(words), lambda match: words[match[0]], _INSIDE))
    init = _INIT.replace("INSIDE", inside).encode()
    write_initrd(f"{directory}/initrd", unpacked, kernel, modules_from, 0, modules=FIRST_MODULES, init=init)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{directory}/fs")
    listener.listen(1)
    options = "source=/,sandbox=chroot,xattr,cache=auto"
    share = subprocess.Popen(
        [VIRTIOFSD, f"--fd={listener.fileno()}", "-o", options, "--thread-pool-size=2"],
        pass_fds=[listener.fileno()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    listener.close()
    try:
        return _boot(directory)
    finally:
        share.terminate()
        share.wait()


def _boot(directory: str) -> int:
    accel = "kvm" if os.environ.get("ACCEL") == "kvm" else "tcg,thread=multi"
    argv = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", accel),
        *("-cpu", "max", "-smp", "2", "-m", f"{MEMORY_MIB}M"),
        *("-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on"),
        *("-M", "q35,memory-backend=memory"),
        *("-kernel", f"{GUEST_IMAGE}/{manifest.KERNEL}", "-initrd", f"{directory}/initrd"),
        *("-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests cgroup_no_v1=all"),
        *("-chardev", f"socket,id=fs,path={directory}/fs", "-device", "vhost-user-fs-pci,chardev=fs,tag=host"),
        *("-device", "virtio-rng-pci", "-serial", "stdio"),
    ]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        said = b""
        while chunk := os.read(machine.stdout.fileno(), 65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            said = (said + chunk)[-4096:]
    code = _CODE.search(said)
    return int(code[1]) if code else _FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

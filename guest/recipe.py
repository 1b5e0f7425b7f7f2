"""What the guest image is made of: data only, read by the steps of the build."""

from __future__ import annotations

SUITE = "bookworm"
ARCHITECTURE = "x86_64"

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
"""Depends on the newest kernel of the suite; its dependency is what is fetched."""

PACKAGES = (
    # Python for the agent; the standard library is cut to what the agent imports
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3-msgpack",
    "libexpat1",
    "libffi8",
    "zlib1g",
    # the container driver
    "crun",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libseccomp2",
    "libsystemd0",
    "libyajl2",
    "libzstd1",
    "libc6",
    # the first seconds: loads the modules that the root disk needs; later an operator's commands (kuasarctl exec)
    "busybox-static",
    # of the build, not of the image: mkfs.erofs
    "erofs-utils",
    "libpcre2-8-0",
    "libselinux1",
    "libuuid1",
)

PROGRAMS = ("usr/bin/python3.11", "usr/bin/crun")
"""The only programs of the running guest, with :data:`BUSYBOX` and :data:`SCRIPTS`. Their libraries follow."""

BUSYBOX = "bin/busybox"
"""Linked statically."""

APPLETS = """
[ awk base64 basename blkid blockdev cat chmod chown cmp cp cut date dd df diff dirname dmesg du echo egrep env expr
false fgrep find free grep gunzip gzip head hexdump hostname id ifconfig ionice ip kill killall less ln losetup ls lsmod
md5sum mkdir mkfifo mknod mktemp more mount mv nc netstat nice nl nohup nproc nsenter nslookup od pgrep pidof ping ping6
pkill printf ps pwd readlink realpath renice reset rm rmdir route sed seq setsid sh sha256sum sleep sort stat strings
stty sync sysctl tac tail tar taskset tee telnet test tftp time timeout top touch tr traceroute true truncate tty umount
uname uniq unshare uptime vi watch wc wget which whoami xargs xxd yes zcat
"""
"""Names of busybox in the running guest, for the commands of an operator; what it was not built with is left out.
Containers have their own root and do not see them (docs/decisions/0012-busybox-in-the-guest.md)."""

SCRIPTS = {
    "usr/sbin/modprobe": "#!/usr/bin/python3.11 -ISB\nfrom guest.pid1.modprobe import main\nraise SystemExit(main())\n",
}
"""Programs of two lines, which start the interpreter with code of ours."""

STDLIB = "usr/lib/python3.11"
SLIM_DIRECTORY = "guest/slim"
MSGPACK = "usr/lib/python3/dist-packages"

AGENT_ROOTS = ("guest.pid1.boot", "guest.pid1.modprobe", "kuasar.agent.main", "kuasar.agent.drivers.oci")
"""Our code in the guest is what these import, wherever in a function they do it."""

NOT_IN_GUEST = ("kuasar.agent.drivers.wasmtime",)
"""Imported by name when a configuration asks for it, which a guest's never does."""

SLIM = ("dataclasses", "datetime", "json", "signal", "socket", "threading", "typing")
"""Modules of the standard library that are replaced by small ones of our own, ``guest/slim/<name>.py``, because they
would be a third of the agent's memory."""

STDLIB_BESIDES = (
    # what the interpreter and its library import by name while running, so that no import statement shows it
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "_strptime",
    "linecache",
    "traceback",
    "warnings",
)

EARLY_MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "erofs")
"""Needed to see the root disk and to mount it: loaded from the initial memory disk."""

BOOT_MODULES = (
    "virtio_console",
    "virtio-rng",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "overlay",
    "fuse",
    "virtiofs",
    "virtio_balloon",
    "virtio_mem",
)
"""Loaded by PID 1 before the agent starts, in this order (their dependencies first)."""

DEMAND_MODULES = (
    # file systems of volumes and images (ext4 is built in); loop devices; what pods expect of a network
    "xfs",
    "squashfs",
    "loop",
    "tun",
    "veth",
    "dummy",
    "bridge",
    "macvlan",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "iptable_mangle",
    "ip6table_filter",
    "ip6table_nat",
    "ip6table_mangle",
    "xt_conntrack",
    "xt_comment",
    "xt_mark",
    "xt_multiport",
    "xt_owner",
    "xt_REDIRECT",
    "xt_MASQUERADE",
    "xt_tcpudp",
    "nf_tables",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_masq",
    "nft_nat",
    "nft_redir",
)
"""In the image, loaded by whoever needs one (guest/pid1/modules.py)."""

KERNEL_OPTIONS = (
    "swiotlb=noforce",  # else a machine to which memory can be added sets 64 MiB aside for devices that it has not
    "lockdown=confidentiality",  # also keeps 10 000 files of the kernel's tracing from being made: 9 MiB
)
"""On every guest's command line (docs/guest-image.md, "Memory")."""

DIRECTORIES = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr/lib/modules", "var")
LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin", "var/run": "../run"}
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\n",
    "etc/machine-id": "",  # each guest's own lies over it
    "etc/os-release": 'ID=kuasar-guest\nNAME="Kuasar guest"\nPRETTY_NAME="Kuasar guest (Debian bookworm packages)"\n',
}

MAX_IMAGE_BYTES = 64 * 1024 * 1024

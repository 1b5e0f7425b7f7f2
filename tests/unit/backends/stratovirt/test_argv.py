"""StratoVirt's command line, word for word: a change of it is a change of what pods run in."""

from __future__ import annotations

import dataclasses

from kuasar.backends.stratovirt.argv import Card, Guest, build, is_sayable

MICROVM = Guest(
    name="kuasar-s",
    machine="microvm",
    vcpus=2,
    memory_bytes=256 << 20,
    kernel="/cache/kernel.bin",
    initrd="/image/initrd",
    root="/image/root.erofs",
    firmware="",
    command_line="console=ttyS0 root=/dev/vda",
    console="/log/s.console.log",
    share="/run/s/virtiofsd.sock",
    cards=(Card("nic0", "02:00:00:00:00:01", (3,)), Card("nic1", "02:00:00:00:00:02", (4,))),
    ports=2,
)
Q35 = dataclasses.replace(
    MICROVM,
    machine="q35",
    kernel="/image/vmlinuz",
    firmware="/usr/share/OVMF/OVMF_CODE.fd",
    cards=(Card("nic0", "02:00:00:00:00:01", (3, 4)), Card("nic1", "02:00:00:00:00:02", (5, 6))),
)
GOLDEN_MICROVM = """\
/usr/bin/env STRATOVIRT_LOG_LEVEL=error stratovirt
-name kuasar-s
-machine microvm,mem-share=on,dump-guest-core=off
-accel kvm
-smp cpus=2,maxcpus=2
-m size=256M
-kernel /cache/kernel.bin
-initrd /image/initrd
-append console=ttyS0 root=/dev/vda
-qmp unix:qmp.sock,server,nowait
-serial file,path=/log/s.console.log
-chardev socket,id=agent,path=agent.sock,server,nowait
-device virtio-serial-device,id=serial
-device virtconsole,id=kuasar.agent,chardev=agent,nr=0
-drive id=root,file=/image/root.erofs,readonly=on,direct=off
-device virtio-blk-device,id=root,drive=root,serial=root
-object rng-random,id=random,filename=/dev/urandom
-device virtio-rng-device,id=rng,rng=random
-device virtio-balloon-device,id=balloon,deflate-on-oom=true,free-page-reporting=true
-chardev socket,id=share,path=/run/s/virtiofsd.sock
-device vhost-user-fs-device,id=share,chardev=share,tag=kuasar
-netdev tap,id=nic0,fds=3
-device virtio-net-device,id=nic0,netdev=nic0,mac=02:00:00:00:00:01
-netdev tap,id=nic1,fds=4
-device virtio-net-device,id=nic1,netdev=nic1,mac=02:00:00:00:00:02"""
GOLDEN_Q35 = """\
/usr/bin/env STRATOVIRT_LOG_LEVEL=error stratovirt
-name kuasar-s
-machine q35,mem-share=on,dump-guest-core=off
-accel kvm
-smp cpus=2,maxcpus=2
-m size=256M
-drive file=/usr/share/OVMF/OVMF_CODE.fd,if=pflash,unit=0,readonly=true
-kernel /image/vmlinuz
-initrd /image/initrd
-append console=ttyS0 root=/dev/vda
-qmp unix:qmp.sock,server,nowait
-serial file,path=/log/s.console.log
-chardev socket,id=agent,path=agent.sock,server,nowait
-device virtio-serial-pci,id=serial,bus=pcie.0,addr=0x2
-device virtserialport,id=kuasar.agent,chardev=agent,nr=1
-drive id=root,file=/image/root.erofs,readonly=on,direct=off
-device virtio-blk-pci,id=root,drive=root,serial=root,bus=pcie.0,addr=0x3
-object rng-random,id=random,filename=/dev/urandom
-device virtio-rng-pci,id=rng,rng=random,bus=pcie.0,addr=0x4
-device virtio-balloon-pci,id=balloon,deflate-on-oom=true,free-page-reporting=true,bus=pcie.0,addr=0x5
-chardev socket,id=share,path=/run/s/virtiofsd.sock
-device vhost-user-fs-pci,id=share,chardev=share,tag=kuasar,bus=pcie.0,addr=0x6
-netdev tap,id=nic0,fds=3:4,queues=2
-device virtio-net-pci,id=nic0,netdev=nic0,mac=02:00:00:00:00:01,mq=on,bus=pcie.0,addr=0x7
-netdev tap,id=nic1,fds=5:6,queues=2
-device virtio-net-pci,id=nic1,netdev=nic1,mac=02:00:00:00:00:02,mq=on,bus=pcie.0,addr=0x8
-device pcie-root-port,id=port0,port=0x0,bus=pcie.0,addr=0x10.0,multifunction=on
-device pcie-root-port,id=port1,port=0x1,bus=pcie.0,addr=0x10.1,multifunction=on"""


def lines(argv: list[str]) -> str:
    """An option and its value a line."""
    text = ""
    for word in argv:
        text += ("\n" if word.startswith("-") else " ") + word
    return text.strip()


def test_a_microvm() -> None:
    assert lines(build("stratovirt", MICROVM)) == GOLDEN_MICROVM


def test_a_q35() -> None:
    assert lines(build("stratovirt", Q35)) == GOLDEN_Q35


def test_nothing_is_shared() -> None:
    argv = build("stratovirt", dataclasses.replace(MICROVM, share=""))
    assert "microvm,mem-share=off,dump-guest-core=off" in argv
    assert not [word for word in argv if "vhost-user" in word or "id=share" in word]


def test_the_ninth_port_is_in_the_next_slot() -> None:
    argv = build("stratovirt", dataclasses.replace(Q35, ports=9))
    assert argv[-1] == "pcie-root-port,id=port8,port=0x8,bus=pcie.0,addr=0x11.0,multifunction=on"


def test_a_comma_cannot_be_said() -> None:
    assert is_sayable("/run/kuasar")
    assert not is_sayable("/run/a,b")

"""The guest of the stand-ins: our real agent, in namespaces of its own, on what the VMM plugs in.

A stand-in VMM owns one :class:`~tests.standins.guest.guest.Guest`. What is hardware is replaced: disks are loop devices
found by the VMM's word for them, cards are taps whose frames a thread carries to the pod's, the clock is this
host's, and power-off is the end of the first process. The rest is the product's own agent code, and crun. What it is
not is a kernel of its own: boot id, release and /proc are the host's.
"""

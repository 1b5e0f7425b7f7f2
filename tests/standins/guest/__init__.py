"""The guest of the stand-ins for VMMs: our real guest image and agent in namespaces, in the place of a machine.

A stand-in runs where its VMM would: unprivileged, in the pod's cgroup, with no environment. So what only root can do
is done by the *hardware*, a server that tests start (``server.py``); the stand-in owns a :class:`client.Guest`, which
talks to it. For each guest the server forks a process (``machine.py``) that dies with its VMM, and the guest with it.

What is real: the root disk that the VMM was given, with its Python, agent and crun; the agent's first process as
``guest/pid1`` starts it; mount, pid, uts, ipc, network and cgroup namespaces; network cards (taps, between which and
the VMM's taps frames are carried, ``pumps.py``); the directory that the true virtiofsd serves (``sharing.py``); disks
(loop devices, ``loops.py``); power-off and reset by reboot(2). What is hardware is replaced (``inside.py``): modules,
serial numbers of disks, the virtiofs mount, the clock, what can be plugged in, and the vsock device, for which there
is a unix socket.

``client.py`` needs nothing but the standard library: a copy of it runs from wherever the VMM's user can read.
"""

"""What the Wasmtime driver is made of: the plan of a container, its process, its file system, its module, its cache.

``plan`` reads the specification; ``process`` is what the forked child does, step by step; ``syscalls``, ``rootfs``,
``privileges`` and ``seccomp`` are its surroundings; ``modules`` and ``digests`` are the cache on disk; ``engine`` is
all that knows wasmtime. The agent imports it but only the child uses it: running a module starts threads, and the agent
has none.
"""

"""The leaf package: what every process of the tree may import, and which imports nothing of the tree.

Standard library and msgpack only, because the agent carries it into guests: errors, identifiers, the small event
loop, the door for child processes, framing, configuration, cgroup facts, logging.
"""

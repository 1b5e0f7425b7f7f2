"""The reconciler: compares what there is with what should be; adopts what lives, frees what is dead, says what it did.

``facts.py`` looks, ``plan.py`` decides (pure), ``apply.py`` acts, ``__main__.py`` is the command and the service under
supervisord. It owns nothing and remembers nothing, so it may die at any moment.

Everything is attributed by a sandbox directory of ours, and then by its id: the log that its processes write to, the
names of its cgroups, the mounts below its directory, its entries in the keeper. What cannot be attributed to this
state directory is never touched: another stack may own it.
"""

"""Backends: what gives a sandbox its machine. ``base.py`` is the contract, ``registry.py`` finds the module."""

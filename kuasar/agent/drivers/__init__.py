"""Container drivers: how the agent makes containers. ``base.py`` is the contract, one module per kind."""

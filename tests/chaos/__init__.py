"""Things die under load while the real containerd watches: ``python -m tests.chaos``."""

"""End-to-end tests: the real containerd, driven over CRI, with one set of tests for every engine (docs/testing.md)."""

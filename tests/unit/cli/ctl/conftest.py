"""Fixtures of the command's tests."""

from __future__ import annotations

from tests.unit.cli.ctl.node_files import files

__all__ = ["files"]

"""Programs that a test interrupts: a shell lets its background jobs ignore SIGINT, and their children inherit that."""

from __future__ import annotations

INTERRUPTIBLE = ["env", "--default-signal=INT"]
"""Words before a command line: SIGINT ends or reaches the program, however the tests were started."""

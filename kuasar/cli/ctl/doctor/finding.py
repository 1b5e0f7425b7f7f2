"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    check: str
    status: str
    """``pass``; ``warn``: something does not work, or soon will not; ``fail``: no sandbox can run."""
    reason: str
    remedy: str = ""


def passed(check: str, reason: str) -> Finding:
    """All is well."""
    return Finding(check, PASS, reason)


def warned(check: str, reason: str, remedy: str) -> Finding:
    """Something is missing."""
    return Finding(check, WARN, reason, remedy)


def failed(check: str, reason: str, remedy: str) -> Finding:
    """Nothing will work."""
    return Finding(check, FAIL, reason, remedy)

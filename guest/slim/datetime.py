"""``datetime`` of the guest: the interpreter's own half. The library's defines all of it once more first."""

from __future__ import annotations

from _datetime import (  # type: ignore[import-not-found]  # has no stub, but all of the real module's names
    MAXYEAR,
    MINYEAR,
    UTC,
    date,
    datetime,
    datetime_CAPI,
    time,
    timedelta,
    timezone,
    tzinfo,
)

__all__ = (
    "MAXYEAR",
    "MINYEAR",
    "UTC",
    "date",
    "datetime",
    "datetime_CAPI",
    "time",
    "timedelta",
    "timezone",
    "tzinfo",
)

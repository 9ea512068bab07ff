"""Takes the place of `datetime` in the shims' own binaries: the C implementation alone, as Python 3.12 and later do it.

Before, the one in Python was executed first, only to be replaced.
"""

from _datetime import MAXYEAR, MINYEAR, UTC, date, datetime, time, timedelta, timezone, tzinfo

__all__ = ["MAXYEAR", "MINYEAR", "UTC", "date", "datetime", "time", "timedelta", "timezone", "tzinfo"]

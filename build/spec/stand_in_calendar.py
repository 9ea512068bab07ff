"""Takes the place of `calendar` in the shims' own binaries: the one function that protobuf wants of it.

The real one brings `locale` and names of months, which every launch would wait for.
"""

from datetime import date

_EPOCH = date(1970, 1, 1).toordinal()


def timegm(moment):
    """Return the seconds since 1970 of a UTC time tuple."""
    year, month, day, hour, minute, second = moment[:6]
    return ((date(year, month, day).toordinal() - _EPOCH) * 24 + hour) * 3600 + minute * 60 + second

"""Takes the place of protobuf's module of that name: no message of the shims' own has more methods than any message.

The real one has some for Timestamp, Any and others, and brings `datetime` and `calendar` for them.
"""

WKTBASES = {}

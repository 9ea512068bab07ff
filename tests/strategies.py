"""What hypothesis draws from: frames, envelopes, ways to cut bytes, and command lines."""

from collections.abc import Sequence
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st

from shim.ttrpc import _frame
from shim.ttrpc._envelope import encode_error, encode_request, encode_response

# For properties whose examples cost much: the suite is to be run often.
FEWER: Final = settings(max_examples=30)

STREAM_IDS: Final = st.integers(0, _frame.MAX_STREAM_ID)
KINDS: Final = st.sampled_from([0, _frame.REQUEST, _frame.RESPONSE, _frame.DATA, 4, 255])
FLAGS: Final = st.integers(0, 255)

# (stream id, kind, flags, body)
FrameValues = tuple[int, int, int, bytes]
FRAMES: Final[st.SearchStrategy[FrameValues]] = st.tuples(STREAM_IDS, KINDS, FLAGS, st.binary(max_size=40))

TEXTS: Final = st.text(max_size=12)
INT64: Final = st.integers(-(1 << 63), (1 << 63) - 1)
# Bodies that mean something to one side: calls of every kind, and answers.
ENVELOPES: Final = st.sampled_from(
    [
        *(encode_request("a.B", name, payload) for name in "CTSE" for payload in (b"", b"\x08\x07")),
        encode_request("a.X", "C", b""),
        encode_request("a.B", "X", b""),
        encode_response(b"\x08\x08"),
        encode_error(5, "nf"),
        b"\x0a\x00",
        b"\x0a\x01",
    ]
)
METADATA: Final = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)

# Flags of a shim, malformed ones, words that only look like flags, and values that booleans take or refuse.
FLAG_WORDS: Final = st.sampled_from(
    [
        "namespace",
        "id",
        "address",
        "publish-binary",
        "bundle",
        "socket",
        "debug-socket",
        "debug",
        "info",
        "v",
        "version",
    ]
)
_VALUES: Final = st.sampled_from(
    ["", "x", "-x", "1", "t", "T", "true", "TRUE", "True", "0", "f", "False", "maybe", "a=b"]
)
_DASHES: Final = st.sampled_from(["-", "--", "---", ""])
_PLAIN: Final = st.sampled_from(["", "-", "--", "start", "delete", "-h", "--help", "-nope", "-=x", "--=", "-D"])
COMMAND_LINES: Final = st.lists(
    st.one_of(
        st.builds("{}{}".format, _DASHES, FLAG_WORDS),
        st.builds("{}{}={}".format, _DASHES, FLAG_WORDS, _VALUES),
        _VALUES,
        _PLAIN,
    ),
    max_size=7,
)


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> Sequence[bytes]:
    """Draw a way to cut `data` into pieces, empty ones included."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]

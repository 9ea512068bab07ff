"""In the place of json: reads and writes by the interpreter's own scanner and encoder, which are in C.

What json itself has around them needs `re`, by far the heaviest that a launch would load.  Only what a shim calls is
here; meaning and error texts are json's.
"""

import sys
from _json import encode_basestring_ascii, make_encoder, make_scanner

_BLANKS = " \t\n\r"


class JSONDecodeError(ValueError):
    """A text is no JSON; the message says where."""

    def __init__(self, msg, doc, pos):
        line, column = doc.count("\n", 0, pos) + 1, pos - doc.rfind("\n", 0, pos)
        super().__init__(f"{msg}: line {line} column {column} (char {pos})")
        self.msg, self.doc, self.pos, self.lineno, self.colno = msg, doc, pos, line, column


class JSONDecoder:
    """Reads one value; the attributes are what the scanner asks for."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__

    def raw_decode(self, s, idx=0):
        """Return the value that begins at an index, and where it ends."""
        try:
            return make_scanner(self)(s, idx)
        except StopIteration as error:
            raise JSONDecodeError("Expecting value", s, error.value) from None


def loads(s):
    """Return the value that a text, or its bytes in UTF-8, is."""
    text = s if isinstance(s, str) else s.decode("utf-8", "surrogatepass")
    value, end = JSONDecoder().raw_decode(text, _after_blanks(text, 0))
    end = _after_blanks(text, end)
    if end != len(text):
        raise JSONDecodeError("Extra data", text, end)
    return value


def _after_blanks(text, index):
    while text[index : index + 1] and text[index] in _BLANKS:
        index += 1
    return index


def dumps(obj, separators=(", ", ": ")):
    """Return a value as text, all of it ASCII."""
    item, key = separators
    encode = make_encoder({}, _refuse, encode_basestring_ascii, None, key, item, False, False, True)
    return "".join(encode(obj, 0))


def _refuse(obj):
    raise TypeError(f"Object of type {type(obj).__name__} is not JSON serializable")


sys.modules["json.decoder"] = sys.modules[__name__]  # where the scanner has its errors from

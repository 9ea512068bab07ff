"""The frozen shims' own json: it means what Python's means, and complains in the same words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stand_ins import load

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
# Nearly JSON.
TEXTS = st.lists(st.sampled_from([*'{}[]":,\\ \n\t\r\f', "1", "-", "e5", "null", "NaN", "\\u00", "\ud800", "x"])).map(
    "".join
)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[ModuleType]:
    """Return the module, which puts itself where the scanner looks for its errors."""
    before = sys.modules["json.decoder"]
    try:
        module = load("json")
        assert sys.modules["json.decoder"] is module
        yield module
    finally:
        sys.modules["json.decoder"] = before


def outcome(function: Any, *arguments: Any) -> object:
    """Return what a function returns, or how it fails; NaN, which equals nothing, by its words."""
    try:
        return repr(function(*arguments))
    except ValueError as error:
        return str(error)


@given(value=VALUES)
def test_values_are_written_alike(stand_in: ModuleType, value: object) -> None:
    """With both kinds of separators that are used."""
    assert json.dumps(value) == stand_in.dumps(value)
    assert json.dumps(value, separators=(",", ":")) == stand_in.dumps(value, separators=(",", ":"))
    assert value == stand_in.loads(json.dumps(value))


@given(text=TEXTS)
def test_texts_are_read_alike(stand_in: ModuleType, text: str) -> None:
    """Or refused alike."""
    assert outcome(json.loads, text) == outcome(stand_in.loads, text)
    assert outcome(json.JSONDecoder().raw_decode, text) == outcome(stand_in.JSONDecoder().raw_decode, text)


@pytest.mark.parametrize("data", [b' {"a": [1.5, "\xc3\xbc"]}\n', b"\xff", b"", b'"\xed\xa0\x80"'])
def test_bytes_are_utf8(stand_in: ModuleType, data: bytes) -> None:
    """As every file of a bundle is."""
    assert outcome(json.loads, data) == outcome(stand_in.loads, data)


def test_what_is_no_json_is_named(stand_in: ModuleType) -> None:
    """An error of ours that should be seen."""
    with pytest.raises(TypeError, match="Object of type set is not JSON serializable"):
        stand_in.dumps({"a": {1}})

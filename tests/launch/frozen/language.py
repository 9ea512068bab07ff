"""Checks of the language itself: exceptions, objects, memory, text, numbers, imports."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from tests.launch.frozen.registry import check, expect, raised

# Made before the image, so that it lies in it.
KEPT_LIST = list(range(1000))
KEPT_DICT = {f"key-{number}": number for number in range(1000)}
KEPT_BYTES = bytearray(b"x" * 10_000)
KEPT_SET = set(range(1000))
KEPT_TEXT = ["a text that is made at run time " + str(number) for number in range(100)]


class Node:
    """Something that can be referred to."""

    def __init__(self) -> None:
        self.next: Node | None = None


KEPT_NODE = Node()
KEPT_REFERENCE = weakref.ref(KEPT_NODE)


@check
def exceptions_have_causes_and_tracebacks() -> None:
    import traceback

    def fail() -> None:
        try:
            {}["x"]  # type: ignore[index]
        except KeyError as error:
            raise ValueError("y") from error

    error = raised(ValueError, fail)
    text = "".join(traceback.format_exception(error))
    expect(isinstance(error.__cause__, KeyError))
    expect("KeyError: 'x'" in text and "ValueError: y" in text, text)
    expect("in fail" in text and "language.py" in text, text)


@check
def exception_groups_split() -> None:
    group = ExceptionGroup("g", [ValueError(1), TypeError(2)])
    matched: Any
    rest: Any
    matched, rest = group.split(ValueError)
    expect(matched is not None and rest is not None)
    expect([type(each) for each in matched.exceptions + rest.exceptions] == [ValueError, TypeError])


@check
def every_core_exception_can_be_raised() -> None:
    import builtins

    for name, kind in vars(builtins).items():
        if isinstance(kind, type) and issubclass(kind, Exception) and "Unicode" not in name and "Group" not in name:
            expect(isinstance(raised(kind, _raise, kind("x")), kind))


def _raise(error: BaseException) -> None:
    raise error


@check
def collector_finds_cycles() -> None:
    gc.collect()
    made = [Node() for _ in range(1000)]
    for node in made:
        node.next = node
    reference = weakref.ref(made[500])
    del made, node
    expect(gc.collect() >= 1000)
    expect(reference() is None)


@check
def collector_runs_by_itself() -> None:
    gc.enable()
    collected: list[int] = []
    gc.callbacks.append(lambda phase, _info: collected.append(1) if phase == "stop" else None)
    for _ in range(100_000):
        node = Node()
        node.next = node
    gc.callbacks.clear()
    expect(collected)


@check
def collector_leaves_what_was_in_the_image() -> None:
    frozen = gc.get_freeze_count()
    gc.collect()
    expect(gc.get_freeze_count() == frozen)
    expect(KEPT_REFERENCE() is KEPT_NODE)
    expect(len(gc.get_objects()) < 50_000)


@check
def finalizers_run() -> None:
    called: list[str] = []

    class WithDel:
        def __del__(self) -> None:
            called.append("del")

    one = WithDel()
    weakref.finalize(one, called.append, "finalize")
    del one
    cyclic = WithDel()
    cyclic.me = cyclic  # type: ignore[attr-defined]
    del cyclic
    gc.collect()
    expect(sorted(called) == ["del", "del", "finalize"], called)


@check
def weak_references_to_objects_of_the_image_work() -> None:
    reference = weakref.ref(KEPT_NODE, lambda _: None)
    expect(reference() is KEPT_NODE)
    table: weakref.WeakKeyDictionary[Node, int] = weakref.WeakKeyDictionary()
    table[KEPT_NODE] = 1
    for _ in range(1000):
        table[Node()] = 2
    gc.collect()
    expect(dict(table) == {KEPT_NODE: 1})


@check
def objects_of_the_image_grow_and_shrink() -> None:
    for _ in range(3):
        KEPT_LIST.extend(range(100_000))
        KEPT_DICT.update((f"more-{number}", number) for number in range(10_000))
        KEPT_BYTES.extend(b"y" * 1_000_000)
        KEPT_SET.update(range(100_000))
        expect(len(KEPT_LIST) == 101_000 and KEPT_LIST[999:1001] == [999, 0])
        expect(KEPT_DICT["key-7"] == 7 and KEPT_DICT["more-9999"] == 9999)
        expect(KEPT_BYTES[:10_001] == b"x" * 10_000 + b"y")
        expect(len(KEPT_SET) == 100_000)
        del KEPT_LIST[1000:], KEPT_BYTES[10_000:]
        for number in range(10_000):
            del KEPT_DICT[f"more-{number}"]
        KEPT_SET.intersection_update(range(1000))
    expect(KEPT_LIST == list(range(1000)))
    expect(sum(KEPT_DICT.values()) == sum(range(1000)))
    KEPT_LIST.clear()
    KEPT_DICT.clear()
    KEPT_TEXT.clear()
    gc.collect()


@check
def classes_of_the_image_can_change() -> None:
    Node.added = lambda self: 7  # type: ignore[attr-defined]
    expect(KEPT_NODE.added() == 7)  # type: ignore[attr-defined]
    derived = type("Derived", (Node,), {"x": 1})
    expect(derived().added() == 7 and derived in Node.__subclasses__())
    del derived
    gc.collect()


@check
def memory_errors_are_raised_and_survived() -> None:
    raised(MemoryError, bytearray, 1 << 60)
    raised(MemoryError, lambda: b"x" * (1 << 50))
    raised(MemoryError, lambda: [None] * (1 << 55))
    raised(MemoryError, lambda: " " * sys.maxsize)
    expect(sum(range(1000)) == 499_500)


@check
def memory_errors_come_of_a_limit() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (300 << 20, hard))
    try:
        raised(MemoryError, bytearray, 1 << 29)
        many: list[object] = []

        def fill(make: Callable[[], object]) -> None:
            while True:
                many.append(make())

        raised(MemoryError, fill, lambda: bytes(1 << 20))
        many.clear()
        raised(MemoryError, fill, lambda: [None] * 20)
        many.clear()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    expect(len(bytes(50 << 20)) == 50 << 20)


@check
def recursion_is_limited() -> None:
    def recurse(depth: int) -> int:
        return recurse(depth + 1)

    class Deep:
        def __repr__(self) -> str:
            return repr(self)

    raised(RecursionError, recurse, 0)
    raised(RecursionError, repr, Deep())
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    raised(RecursionError, repr, nested)
    while nested:  # else its end is one of the C stack
        (nested,) = nested  # type: ignore[assignment]
    raised(RecursionError, recurse, 0)


@check
def long_chains_of_objects_can_be_freed() -> None:
    first = Node()
    for _ in range(1_000_000):
        following = Node()
        following.next, first = first, following
    del first, following
    nested: tuple[object, ...] = ()
    for _ in range(1_000_000):
        nested = (nested,)
    del nested


@check
def large_memory_is_given_back() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    large = bytearray(64 << 20)
    for at in range(0, len(large), 4096):
        large[at] = 1
    expect(resident() - before > 62 << 20)
    large.extend(bytes(16 << 20))  # realloc of it
    expect(large[4096] == 1)
    del large
    expect(resident() - before < 8 << 20, resident() - before)
    small = [bytes(400) for _ in range(200_000)]
    expect(resident() - before > 80 << 20)
    del small
    expect(resident() - before < 16 << 20, resident() - before)


@check
def address_space_of_a_gigabyte_can_be_taken() -> None:
    parts = [bytearray(64 << 20) for _ in range(16)]
    for number, part in enumerate(parts):
        part[-1] = number
    expect(all(part[0] == 0 and part[-1] == number for number, part in enumerate(parts)))


@check
def hashes_are_fixed() -> None:
    expect(sys.flags.hash_randomization == 0)
    expect((hash(""), hash("containerd"), hash(b"shim")) == (0, HASHES[0], HASHES[1]))
    expect({f"key-{number}": 1 for number in range(1000)}.keys() >= set(KEPT_DICT))


HASHES = hash("containerd"), hash(b"shim")


@check
def text_is_encoded_and_decoded() -> None:
    text = "é\u20ac\U0001f600\n"
    for codec in ("utf-8", "utf-16", "utf-32", "utf-7", "unicode_escape", "raw_unicode_escape", "utf-8-sig"):
        expect(text.encode(codec).decode(codec) == text, codec)
    expect("é".encode("latin-1") == b"\xe9" and "é".encode("cp1252") == b"\xe9")
    expect("bücher.example".encode("idna") == b"xn--bcher-kva.example")
    expect(b"\xff".decode("utf-8", "surrogateescape") == "\udcff")
    raised(UnicodeDecodeError, b"\xff".decode)
    raised(LookupError, "x".encode, "no-such-codec")
    import unicodedata

    expect(unicodedata.normalize("NFC", "e\u0301") == "é" and unicodedata.name("é").startswith("LATIN"))


@check
def numbers_are_computed_and_shown() -> None:
    import cmath
    import fractions
    import math

    expect(math.isclose(math.gamma(5), 24) and cmath.sqrt(-1) == 1j)
    expect(repr(0.1) == "0.1" and float("1e308") * 10 == math.inf and f"{1 / 3:.20f}" == "0.33333333333333331483")
    expect(
        int("9" * 4000) == 10**4000 - 1 and str(3**1000).startswith("13220708194808066368904552597521443659654220327")
    )
    expect(fractions.Fraction("0.1") + fractions.Fraction(1, 5) == fractions.Fraction(3, 10))
    raised(ValueError, int, "9" * 5000)
    raised(ZeroDivisionError, lambda: 1 / 0)


@check
def regular_expressions_and_json_work() -> None:
    import json
    import re

    expect(re.findall(r"(\d+)(?=b)", "1a22b333b") == ["22", "333"])
    data = {str(number): [number] * 10 for number in range(20_000)}
    expect(json.loads(json.dumps(data, indent=1)) == data)
    raised(json.JSONDecodeError, json.loads, "{")
    raised(RecursionError, json.loads, "[" * 100_000)


@check
def late_imports_come_from_the_archive() -> None:
    before = set(sys.modules)
    import argparse
    import asyncio
    import concurrent.futures
    import csv
    import decimal
    import difflib
    import ipaddress
    import logging.handlers
    import queue
    import statistics
    import xml.etree.ElementTree as ElementTree
    import zipfile

    made = (
        argparse,
        asyncio,
        concurrent.futures,
        csv,
        difflib,
        ipaddress,
        logging.handlers,
        queue,
        statistics,
        zipfile,
    )
    expect(not before & {module.__name__ for module in made}, before)
    expect(decimal.Decimal("0.1") + decimal.Decimal("0.2") == decimal.Decimal("0.3"))
    expect(decimal.Decimal(2).sqrt() == decimal.Decimal("1.414213562373095048801688724"))
    expect(ElementTree.fromstring("<a><b>c</b></a>").findtext("b") == "c")  # noqa: S314


@check
def ctypes_is_missing_with_a_clear_error() -> None:
    error: Any = raised(ImportError, lambda: __import__("ctypes"))
    expect(isinstance(error, ModuleNotFoundError), repr(error))
    expect(error.name in ("ctypes", "_ctypes"), error.name)


@check
def a_missing_module_is_an_import_error() -> None:
    error: Any = raised(ModuleNotFoundError, lambda: __import__("no_such_module"))
    expect(error.name == "no_such_module", error)


@check
def code_can_be_compiled_and_generated() -> None:
    import dataclasses
    import enum
    import typing

    space: dict[str, typing.Any] = {}
    exec(compile("def f(x, *, y=2):\n    return [a * y for a in x]", "made", "exec"), space)  # noqa: S102
    expect(space["f"]([1, 2]) == [2, 4] and eval("1 + 1") == 2)  # noqa: S307
    point = dataclasses.make_dataclass("Point", [("x", int), ("y", int, 3)], frozen=True, slots=True)
    expect(point(1) == point(1, 3) and hash(point(1)) == hash(point(1)))
    Colour: Any = enum.Enum("Colour", ["RED", "GREEN"])
    expect(Colour["RED"].value == 1)

    class Made(typing.NamedTuple):
        a: int

    expect(Made(a=1)._replace(a=2).a == 2)


@check
def generators_and_coroutines_run() -> None:
    import contextlib

    def count() -> object:
        got = yield 1
        yield got

    generator = count()
    expect(next(generator) == 1 and generator.send("x") == "x")  # type: ignore[call-overload, attr-defined]

    @contextlib.contextmanager
    def guarded() -> Iterator[int]:
        yield 1

    with guarded() as value:
        expect(value == 1)

    async def answer() -> int:
        return 42

    coroutine = answer()
    expect(raised(StopIteration, coroutine.send, None).value == 42)  # type: ignore[attr-defined]


@check
def objects_can_be_pickled_and_copied() -> None:
    import copy
    import pickle

    value = {"a": [1, 2.5, "é", b"x", None, {1, 2}], "b": KEPT_LIST[:5]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        expect(pickle.loads(pickle.dumps(value, protocol)) == value)  # noqa: S301
    expect(copy.deepcopy(value) == value)


@check
def data_is_hashed_and_compressed() -> None:
    import hashlib
    import zlib

    expect(hashlib.sha256(b"abc").hexdigest().startswith("ba7816bf") and hashlib.md5(b"").hexdigest()[:4] == "d41d")  # noqa: S324
    expect(hashlib.blake2b(b"").hexdigest().startswith("786a02f7") and hashlib.sha3_256(b"").digest()[:1] == b"\xa7")
    data = os.urandom(1000) * 100
    expect(zlib.decompress(zlib.compress(data)) == data)


@check
def protobuf_is_the_fast_one() -> None:
    from google.protobuf.internal import api_implementation
    from google.protobuf.timestamp_pb2 import Timestamp

    expect(api_implementation.Type() == "upb")
    stamp = Timestamp(seconds=5, nanos=7)
    expect(Timestamp.FromString(stamp.SerializeToString()) == stamp)
    from shim.api import task_v2_pb2

    request = task_v2_pb2.CreateTaskRequest(id="a", bundle="b" * 100_000)
    for _ in range(100):
        expect(task_v2_pb2.CreateTaskRequest.FromString(request.SerializeToString()) == request)
    raised(Exception, task_v2_pb2.CreateTaskRequest.FromString, b"\xff\xff")

"""The heap of a process that is going to be forked many times: prepared so that the forks share it for long.

Rule: what CPython and the C library keep in memory, and where, is known here alone.  After a fork a page is copied when
it is first written to, and two habits write everywhere: counting references, which lie in the objects themselves, and
filling the holes that freed objects have left.  Where a habit cannot be broken nothing is done; it costs memory only.
Spec: PEP 683 (immortal objects, CPython 3.12); CPython's Objects/obmalloc.c (pools, arenas); malloc(3).
"""

from __future__ import annotations

import ctypes
import gc
import sys
from types import CodeType, FrameType, FunctionType, GeneratorType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# An immortal object's count; those of None before 3.12 are far below.
_IMMORTAL_FROM: Final = 1 << 30
# The half of the count that says so: the lower 32 bits.
_COUNT_AT: Final = 0 if sys.byteorder == "little" else 4
_PROBED: Final = 1000
# obmalloc: blocks of one size lie in a pool of 16 KiB behind its header of 48 bytes; larger ones are malloc's.
_POOL: Final = 16 << 10
_POOL_HEADER: Final = 48
_STEP: Final = 16
_LARGEST_BLOCK: Final = 512
_MOST_FILLED: Final = 512 << 10  # for each size: far more than the holes are, unless there are no pools at all
_OTHERS: Final = 2  # of a pool that go to what counts them
# malloc: chunks from this size down fill its holes.
_LARGEST_CHUNK: Final = 4 << 20
_COARSE_CHUNK: Final = 64 << 10
_COARSE_STEP: Final = 256
_FINE_CHUNK: Final = 4 << 10
_CHUNK_HEADER: Final = 8

# CPython learns what attributes a class's instances have from so many of them.
_LEARNED: Final = 30
# Whose classes that is done with: instances of them without attributes do no harm.
_PACKAGES: Final = frozenset({"shim", "threading", "contextlib", "json", "ctypes", "socket", "enum", "codecs"})

# What runs, and would be taken for immortal while it does.
_PASSING: Final = (FrameType, GeneratorType)


def code_states() -> dict[int, int]:
    """Note what the code of every function looks like by now, for `pack`: Python rewrites it while it runs."""
    if sys.implementation.name != "cpython":
        return {}
    return {id(function.__code__): _state(function.__code__) for function in _functions()}


def pack(before: Mapping[int, int]) -> None:
    """Put what has run since `before`, or has come since, side by side: the code, which Python goes on writing to.

    Run it again some times after this, so that the copies are warm too.
    """
    if sys.implementation.name != "cpython":
        return
    fill_holes()
    _pack_code(before)
    _use_up_shared_keys([found for found in gc.get_objects() if isinstance(found, type)])


def settle() -> None:
    """Make what is there immortal and fill the holes in between: once, before the first fork, with a single thread.

    What is there by now, and what a fork makes of it, is never freed; a fork's own objects come and go as ever.
    """
    gc.collect()
    immortalize()
    fill_holes()
    gc.freeze()  # a collection would write to all of them


def _functions() -> list[FunctionType]:
    return [found for found in gc.get_objects() if type(found) is FunctionType]


def _state(code: CodeType) -> int:
    # Not `co_code`, nor `replace`: they make a second copy of it, which stays with the code.
    return hash(code._co_code_adaptive)  # type: ignore[attr-defined]


def _pack_code(before: Mapping[int, int]) -> None:
    copies: dict[int, tuple[CodeType, CodeType]] = {}  # by the id of the first, which must live for that
    for function in _functions():
        code = function.__code__
        # An id may be another's by now: then one too many is copied, or one too few.
        if id(code) not in copies and before.get(id(code)) != _state(code):
            copies[id(code)] = (code, _copy(code))
        if id(code) in copies:
            function.__code__ = copies[id(code)][1]


def _copy(code: CodeType) -> CodeType:
    inner = [_copy(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.replace(co_consts=tuple(inner))


def _use_up_shared_keys(classes: list[type]) -> None:
    """Make instances of these classes: each of the first thirty writes to its class, which learns its attributes."""
    for found in classes:
        makes: object = found.__new__
        if str(found.__module__).partition(".")[0] not in _PACKAGES or makes is not object.__new__:
            continue
        if hasattr(found, "__del__"):
            continue  # it would act on what has never been made
        try:
            for _ in range(_LEARNED):
                object.__new__(found)
        except TypeError:
            continue  # an abstract one


def immortalize() -> int:
    """Stop counting references to the objects that there are, and return how many: none before CPython 3.12."""
    if not _counts_are_where_we_think() or sys.getrefcount(None) < _IMMORTAL_FROM:
        return 0
    # As None has it, whatever the version writes there.
    immortal = ctypes.c_uint32.from_address(id(None) + _COUNT_AT).value
    count_at = ctypes.c_uint32.from_address
    todo: list[object] = gc.get_objects()
    made = 0
    while todo:
        found = todo.pop()
        count = count_at(id(found) + _COUNT_AT)
        if count.value == immortal or isinstance(found, _PASSING):
            continue  # done; and what has always been immortal refers to nothing that is not in the list itself
        count.value = immortal
        made += 1
        todo += _parts(found) if isinstance(found, CodeType) else gc.get_referents(found)
    return made


def _counts_are_where_we_think() -> bool:
    """Say so by an object whose count is known: builds without the GIL, and of other kinds, have it elsewhere."""
    if sys.implementation.name != "cpython":
        return False
    probe = object()
    held = [probe] * _PROBED
    return len(held) <= ctypes.c_uint32.from_address(id(probe) + _COUNT_AT).value <= len(held) + 3


def _parts(code: CodeType) -> tuple[object, ...]:
    """Return what code consists of, which the collector does not ask it for."""
    return (
        code.co_consts,
        code.co_names,
        code.co_name,
        code.co_qualname,
        code.co_filename,
        code.co_linetable,
        code.co_exceptiontable,
    )


_filler: Final[list[object]] = []
"""What fills the holes of Python's own allocator: must live on."""


def fill_holes() -> None:
    """Take all free memory between what is in use, so that later objects lie together, on pages of their own."""
    for size in range(_STEP, _LARGEST_BLOCK + 1, _STEP):
        _fill_pools(size)
    _fill_chunks()


def _fill_pools(size: int) -> None:
    """Take blocks until they are all of one pool: those that were in use before are full then."""
    whole = (_POOL - _POOL_HEADER) // size
    pools: dict[int, list[object]] = {}
    for number in range(_MOST_FILLED // size):
        block = _block(size, number)
        taken = pools.setdefault(id(block) // _POOL, [])
        taken.append(block)
        if len(taken) >= whole - _OTHERS:
            taken.clear()  # this one is given back
            break
    _filler.extend(pools.values())


def _block(size: int, number: int) -> object:
    """Return a new object of exactly this size that refers to no other."""
    if size == _STEP:
        return object()
    if size == 2 * _STEP:
        return number + 0.5
    return bytes(size - sys.getsizeof(b""))


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2: ten sizes, of which the last is that of the free memory at the end of the heap."""

    _fields_ = (("others", ctypes.c_size_t * 9), ("keepcost", ctypes.c_size_t))


def _fill_chunks() -> None:
    libc = ctypes.PyDLL(None)
    try:
        describe, end, trim = libc.mallinfo2, libc.sbrk, libc.malloc_trim
    except AttributeError:  # an old C library, or another one
        return
    allocate, release = libc.malloc, libc.free
    describe.restype = _Mallinfo
    for function, result, argument in (
        (end, ctypes.c_size_t, ctypes.c_ssize_t),
        (trim, ctypes.c_int, ctypes.c_size_t),
        (allocate, ctypes.c_size_t, ctypes.c_size_t),
        (release, None, ctypes.c_size_t),
    ):
        function.restype, function.argtypes = result, [argument]
    trim(0)  # whole pages go back to the system
    top = end(0) - describe().keepcost
    size = _LARGEST_CHUNK
    while size > _STEP:
        chunk = allocate(size - _CHUNK_HEADER)
        if 0 < chunk < top:
            continue  # a hole less
        release(chunk)
        size -= size // 2 if size > _COARSE_CHUNK else _COARSE_STEP if size > _FINE_CHUNK else _STEP

"""Takes the place of `collections` in the shims' own binaries: what is in C, and named tuples.

All else of it is there too (`whole_collections`), but loaded only when it is asked for.
"""

import _collections_abc as abc
import sys
from _collections import OrderedDict, _tuplegetter, defaultdict, deque

__all__ = ["OrderedDict", "abc", "defaultdict", "deque", "namedtuple"]

sys.modules["collections.abc"] = abc

_UNEXPECTED = TypeError if sys.version_info >= (3, 13) else ValueError


class _Named(tuple):
    """What all named tuples can do; the real ones have each of these functions for themselves."""

    __slots__ = ()

    @classmethod
    def _make(cls, iterable):
        made = tuple.__new__(cls, iterable)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **changed):
        made = self._make(map(changed.pop, self._fields, self))
        if changed:
            raise _UNEXPECTED(f"Got unexpected field names: {list(changed)!r}")
        return made

    __replace__ = _replace

    def _asdict(self):
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self):
        fields = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({fields})"

    def __getnewargs__(self):
        return tuple(self)


def namedtuple(typename, field_names, *, defaults=None, module=None):
    """Return a class of tuples whose items have names."""
    fields = tuple(field_names.replace(",", " ").split() if isinstance(field_names, str) else field_names)
    words = ", ".join(fields)
    make = eval(f"lambda _cls, {words}: _new(_cls, ({words}{',' * bool(fields)}))", {"_new": tuple.__new__})  # noqa: S307
    make.__name__ = "__new__"
    make.__qualname__ = f"{typename}.__new__"
    defaults = tuple(defaults or ())
    make.__defaults__ = defaults or None
    namespace = {field: _tuplegetter(index, f"Alias for field number {index}") for index, field in enumerate(fields)}
    namespace |= {"__slots__": (), "__new__": make, "__match_args__": fields, "_fields": fields}
    namespace["_field_defaults"] = dict(zip(fields[len(fields) - len(defaults) :], defaults, strict=True))
    namespace["__module__"] = sys._getframe(1).f_globals.get("__name__", "__main__") if module is None else module
    return type(typename, (_Named,), namespace)


def __getattr__(name):
    if name.startswith("__"):  # each import looks whether this is a package
        raise AttributeError(name)
    import whole_collections

    return getattr(whole_collections, name)

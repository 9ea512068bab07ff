"""Takes the place of `typing` in the shims' own binaries, where nobody looks at types any more.

The real one is 3,000 lines that every launch would wait for and every daemon would hold.  What it has at run time is
here: NamedTuple, cast, and names that can stand in an expression or among base classes.
"""

from collections import namedtuple

TYPE_CHECKING = False


class _Form:
    """Any other name of typing: may be subscribed, called, joined with | and inherited from, and stays what it is."""

    def __getitem__(self, item):
        return self

    def __call__(self, *arguments, **options):
        return self

    def __or__(self, other):
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases):
        return ()


class _NamedTupleMeta(type):
    def __new__(mcs, name, bases, namespace):
        if not bases:
            return super().__new__(mcs, name, bases, namespace)
        fields = namespace.pop("__annotations__", {})
        defaults = [namespace.pop(field) for field in fields if field in namespace]
        made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
        for key, value in namespace.items():
            if key not in ("__module__", "__qualname__"):
                setattr(made, key, value)
        return made


class NamedTuple(metaclass=_NamedTupleMeta):
    """As typing's, in its class form."""


def cast(kind, value):
    """Return `value`."""
    return value


def overload(function):
    """Return `function`."""
    return function


final = no_type_check = override = runtime_checkable = overload
_form = _Form()


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _form

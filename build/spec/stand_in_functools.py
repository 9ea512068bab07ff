"""Takes the place of `functools` in the shims' own binaries: what is in C, and `wraps`.

All else of it is there too (`whole_functools`), but loaded only when it is asked for.
"""

from _functools import partial, reduce

__all__ = ["partial", "reduce", "update_wrapper", "wraps"]

_COPIED = ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__", "__type_params__")


def update_wrapper(wrapper, wrapped):
    """Make a function look like the one that it calls."""
    for name in _COPIED:
        if hasattr(wrapped, name):
            setattr(wrapper, name, getattr(wrapped, name))
    wrapper.__dict__.update(getattr(wrapped, "__dict__", {}))
    wrapper.__wrapped__ = wrapped
    return wrapper


def wraps(wrapped):
    """As a decorator."""
    return partial(update_wrapper, wrapped=wrapped)


def __getattr__(name):
    if name.startswith("__"):  # each import looks whether this is a package
        raise AttributeError(name)
    import whole_functools

    return getattr(whole_functools, name)

"""Takes the place of `enum` in the shims' own binaries: enumerations of numbers and strings.

All else of it is there too (`whole_enum`), but loaded only when it is asked for.
"""

__all__ = ["Enum", "IntEnum"]


class _EnumType(type):
    def __new__(mcs, name, bases, namespace):
        values = {}
        for key in [key for key, value in namespace.items() if key[0] != "_" and not hasattr(value, "__get__")]:
            values[key] = namespace.pop(key)
        cls = super().__new__(mcs, name, bases, namespace)
        cls._member_map_, cls._value2member_map_ = {}, {}
        for key, value in values.items():
            if type(value) not in (int, str):
                raise TypeError(f"{name}.{key}: {value!r} is no constant")
            member = cls._value2member_map_.get(value)
            if member is None:
                member = int.__new__(cls, value) if issubclass(cls, int) else object.__new__(cls)
                member.name, member.value = key, value
                cls._value2member_map_[value] = member
            cls._member_map_[key] = member
            setattr(cls, key, member)
        return cls

    def __call__(cls, value):
        try:
            return cls._value2member_map_[value]
        except KeyError:
            raise ValueError(f"{value!r} is not a valid {cls.__qualname__}") from None

    @property
    def __members__(cls):
        return dict(cls._member_map_)

    def __getitem__(cls, name):
        return cls._member_map_[name]

    def __iter__(cls):
        return iter(cls._value2member_map_.values())

    def __len__(cls):
        return len(cls._value2member_map_)

    def __contains__(cls, value):
        return value in cls._value2member_map_ or isinstance(value, cls)


class Enum(metaclass=_EnumType):
    """Constants that are nothing but themselves."""

    def __repr__(self):
        return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

    def __str__(self):
        return f"{type(self).__name__}.{self.name}"

    def __hash__(self):
        return hash(self.name)


class IntEnum(int, Enum):
    """Constants that are numbers too."""

    __str__ = int.__repr__
    __repr__ = Enum.__repr__
    __hash__ = int.__hash__


def _simple_enum(kind, **options):
    """Python's own modules make enumerations so: the real thing."""
    import whole_enum

    return whole_enum._simple_enum(getattr(whole_enum, kind.__name__), **options)


def __getattr__(name):
    if name.startswith("__"):  # each import looks whether this is a package
        raise AttributeError(name)
    import whole_enum

    return getattr(whole_enum, name)

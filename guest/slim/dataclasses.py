"""``dataclasses`` of the guest: what the agent uses of it, for 60 KiB instead of 1.4 MiB of memory.

The library's own generates source text and compiles it, and imports ``inspect`` (with it a parser and a disassembler)
for signatures that nobody asks for. Here ``__init__`` and the others are ordinary functions over the names of the
fields. No inheritance of fields, no keyword-only ones; ``slots`` is accepted and saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MISSING: Any = object()


class _Field:
    def __init__(self, default: Any, factory: Callable[[], Any] | None) -> None:
        self.default, self.factory = default, factory


def field(*, default: Any = _MISSING, default_factory: Callable[[], Any] | None = None) -> Any:
    """A field with a default that is made for each instance."""
    return _Field(default, default_factory)


def dataclass(cls: type | None = None, /, *, frozen: bool = False, slots: bool = False) -> Any:
    """Give a class the methods that follow from its annotated fields."""
    if cls is None:
        return lambda cls: _process(cls, frozen)
    return _process(cls, frozen)


def _process(cls: Any, frozen: bool) -> Any:
    fields: dict[str, _Field] = {}
    for name, annotation in getattr(cls, "__annotations__", {}).items():
        if str(annotation).startswith(("ClassVar", "typing.ClassVar")):
            continue
        value = cls.__dict__.get(name, _MISSING)
        fields[name] = value if isinstance(value, _Field) else _Field(value, None)
        if isinstance(value, _Field):
            delattr(cls, name)
    names = tuple(fields)

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__}() takes {len(names)} arguments, {len(args)} were given")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in fields or name in values:
                raise TypeError(f"{cls.__name__}() got an unexpected or repeated argument {name!r}")
            values[name] = value
        for name, each in fields.items():
            value = values.get(name, _MISSING)
            if value is _MISSING:
                value = each.default if each.factory is None else each.factory()
            if value is _MISSING:
                raise TypeError(f"{cls.__name__}() misses the argument {name!r}")
            object.__setattr__(self, name, value)

    def values_of(self: Any) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in names)

    def equal(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values_of(self) == values_of(other)

    def show(self: Any) -> str:
        return f"{cls.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def refuse(self: Any, name: str, value: Any = None) -> None:
        raise AttributeError(f"cannot assign to field {name!r}")

    methods: dict[str, Any] = {"__init__": init, "__eq__": equal, "__repr__": show, "__hash__": None}
    if frozen:
        methods["__hash__"] = lambda self: hash(values_of(self))
        methods |= {"__setattr__": refuse, "__delattr__": refuse}
    for name, method in methods.items():
        if name not in cls.__dict__ or (name == "__hash__" and cls.__dict__[name] is None):
            setattr(cls, name, method)
    return cls

"""``typing`` of the guest: names for annotations, which nothing evaluates, and protocols. Saves 1 MiB."""

from __future__ import annotations

TYPE_CHECKING = False


class _Names(type):
    """What may be subscripted, called and inherited from without any meaning."""

    def __getitem__(cls, item: object) -> _Names:
        return cls


class Any(metaclass=_Names):
    """Anything."""


class ClassVar(metaclass=_Names):
    """An attribute of the class."""


class Generic:
    """A class with parameters."""

    __slots__ = ()

    def __class_getitem__(cls, item: object) -> type:
        return cls


class TypeVar:
    """A parameter."""

    def __init__(self, name: str, *constraints: object, **options: object) -> None:
        self.__name__ = name


class _ProtocolMeta(_Names):
    def __instancecheck__(cls, instance: object) -> bool:
        if Protocol in cls.__bases__:
            return all(hasattr(instance, name) for name in cls.__dict__ if not name.startswith("_"))
        return super().__instancecheck__(instance)


class Protocol(metaclass=_ProtocolMeta):
    """A description of methods. Every one may be asked about with ``isinstance`` here."""


def runtime_checkable(cls: type) -> type:
    """Nothing to be done."""
    return cls

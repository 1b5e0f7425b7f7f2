"""`google.protobuf.Any` the way containerd reads and writes it.

containerd compares type URLs as whole strings and its own are bare message names; a prefixed one is another type
to it. When reading we take both, because a peer that used protobuf's own packing is not wrong.
"""

from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

M = TypeVar("M", bound=Message)


def pack(message: Message) -> Any:
    """An Any whose type_url is the bare full name of `message`, as containerd expects."""
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def holds(value: Any, kind: type[Message]) -> bool:
    """True if `value` says that it is a `kind`; the bytes are not looked at."""
    return value.type_url.rpartition("/")[2] == kind.DESCRIPTOR.full_name


def unpack(value: Any, kind: type[M]) -> M:
    """Decodes `value`, which must be a `kind`. ValueError says what it was instead, or that its bytes are damaged."""
    if not holds(value, kind):
        raise ValueError(f"expected a {kind.DESCRIPTOR.full_name}, got type_url {value.type_url[:200]!r}")
    try:
        return kind.FromString(value.value)
    except DecodeError as error:
        raise ValueError(f"not a valid {kind.DESCRIPTOR.full_name}: {len(value.value)} bytes do not decode") from error

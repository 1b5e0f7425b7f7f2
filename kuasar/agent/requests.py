"""Typed access to the body of a request: whatever is in it, a value of the right type or an error naming the field."""

from __future__ import annotations

from typing import Any

from kuasar.core.errors import InvalidArgument
from kuasar.core.ids import require_id


class Body:
    """The body of one request, or a map in it: ``prefix`` then says where, for the errors."""

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def identifier(self, field: str) -> str:
        """A validated identifier."""
        return require_id(self._values.get(field), self._prefix + field)

    def exec_id(self) -> str:
        """``exec_id``; empty for the container's init."""
        return require_id(value, f"{self._prefix}exec_id") if (value := self._values.get("exec_id")) else ""

    def text(self, field: str) -> str:
        """A string; empty where it is absent."""
        return str(self._get(field, (str,), ""))

    def number(self, field: str) -> int:
        """An integer; 0 where it is absent."""
        return int(self._get(field, (int,), 0))

    def seconds(self, field: str) -> float:
        """A duration that is not negative; 0 where it is absent."""
        value = float(self._get(field, (float, int), 0))
        if not 0 <= value < float("inf"):
            raise self.error(field, f"{value} is no duration")
        return value

    def flag(self, field: str) -> bool:
        """A boolean; false where it is absent."""
        return bool(self._get(field, (bool,), False))

    def binary(self, field: str) -> bytes:
        """Bytes; none where it is absent."""
        return bytes(self._get(field, (bytes,), b""))

    def mapping(self, field: str) -> dict[str, Any]:
        """A map; empty where it is absent."""
        value: dict[str, Any] = self._get(field, (dict,), {})
        return value

    def items(self, field: str) -> list[Any]:
        """A list; empty where it is absent."""
        value: list[Any] = self._get(field, (list,), [])
        return value

    def maps(self, field: str) -> list[Body]:
        """A list of maps; empty where it is absent."""
        found = []
        for index, item in enumerate(self.items(field)):
            if not isinstance(item, dict):
                raise self.error(f"{field}[{index}]", f"dict is needed, got {item!r:.80}")
            found.append(Body(item, f"{self._prefix}{field}[{index}]."))
        return found

    def has(self, field: str) -> bool:
        """Whether there is a value."""
        return self._values.get(field) is not None

    def path(self, field: str) -> str:
        """The name of ``field`` seen from the whole request."""
        return self._prefix + field

    def error(self, field: str, complaint: str) -> InvalidArgument:
        """An error that names ``field`` of this map."""
        return InvalidArgument(f"{self._prefix}{field}: {complaint}", field=self._prefix + field)

    def _get(self, field: str, types: tuple[type, ...], default: Any) -> Any:
        value = self._values.get(field)
        if value is None:
            return default
        if type(value) not in types:
            raise self.error(field, f"{types[0].__name__} is needed, got {value!r:.80}")
        return value

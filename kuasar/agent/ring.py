"""The bytes of a stream that its receiver has not got for good yet: a ring of bounded size, addressed by stream offset.

Nothing is copied into or out of it: a reader fills what :meth:`Ring.space` gives, and what :meth:`Ring.view` gives is
sent as it is. A view stays true until its bytes are released, which is after they have left.
"""

from __future__ import annotations


class Ring:
    """The bytes from ``start`` to ``end`` of a stream. Takes its memory when the first one comes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.start = 0
        self.end = 0
        self._memory = memoryview(b"")
        self._origin = 0
        """The offset that lies at the beginning of the memory."""

    @property
    def room(self) -> int:
        """How many bytes fit in."""
        return self.capacity - (self.end - self.start)

    def space(self, size: int) -> list[memoryview]:
        """Where the next bytes go, ``size`` of them at most: one or two pieces, none when it is full."""
        if not self._memory:
            self._memory = memoryview(bytearray(self.capacity))
        return self._pieces(self.end, min(size, self.room))

    def filled(self, size: int) -> None:
        """So many bytes of that space are there now."""
        if not 0 <= size <= self.room:
            raise ValueError(f"{size} bytes do not fit into {self.room}")
        self.end += size

    def view(self, offset: int, size: int) -> memoryview:
        """Bytes from ``offset``, ``size`` at most: up to the end of the memory or of what there is."""
        if not self.start <= offset <= self.end:
            raise ValueError(f"offset {offset} is not between {self.start} and {self.end}")
        pieces = self._pieces(offset, min(size, self.end - offset))
        return pieces[0] if pieces else memoryview(b"")

    def release(self, offset: int) -> None:
        """Forget what lies before ``offset``. Harmless when it is forgotten already."""
        self.start = max(self.start, min(offset, self.end))
        if self.start == self.end:
            self._origin = self.end  # begin anew, so that a stream of little bytes touches little memory

    def _pieces(self, offset: int, size: int) -> list[memoryview]:
        at = (offset - self._origin) % self.capacity
        first = self._memory[at : at + size]
        rest = self._memory[: size - len(first)]
        return [piece for piece in (first, rest) if len(piece)]

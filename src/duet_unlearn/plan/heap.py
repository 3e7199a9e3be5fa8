"""How much memory a process on Linux occupies for the tensors that it holds: more, since holes stay with it."""

from __future__ import annotations

from bisect import bisect_left, insort

LARGEST = 32 << 20
"""Blocks above that are always mapped, each by itself, and given back when freed (DEFAULT_MMAP_THRESHOLD_MAX)."""
SMALLEST = 128 << 10
"""Blocks below that are never mapped, at first (DEFAULT_MMAP_THRESHOLD)."""


class Heap:
    """glibc's malloc, as far as its pages go (malloc/malloc.c): best fit, neighbours that are free become one.

    What is freed inside the heap stays resident; its end is given back when more than twice the threshold is free
    there. A mapped block that is freed raises the threshold to its size, up to ``LARGEST``.
    """

    def __init__(self) -> None:
        self.mapped = 0
        """Bytes in blocks of their own."""
        self.top = 0
        """Bytes of the heap: whatever was used below its end is resident."""
        self._threshold = SMALLEST
        self._sizes: list[tuple[int, int]] = []
        """Free blocks as (size, start), in order."""
        self._ends: dict[int, int] = {}
        """End of a free block -> its start."""
        self._starts: dict[int, int] = {}
        """Start of a free block -> its end."""

    @property
    def resident(self) -> int:
        return self.mapped + self.top

    def take(self, size: int) -> int | None:
        """The start of a block; None where it is mapped."""
        if size >= self._threshold:
            self.mapped += size
            return None
        at = bisect_left(self._sizes, (size, 0))
        if at < len(self._sizes):
            found, start = self._sizes[at]
            self._remove(start, start + found)
            if found > size:
                self._insert(start + size, start + found)
            return start
        start = self._ends.get(self.top, self.top)
        if start < self.top:
            self._remove(start, self.top)
        self.top = start + size
        return start

    def give(self, start: int | None, size: int) -> None:
        """Free a block."""
        if start is None:
            self.mapped -= size
            if size <= LARGEST:
                self._threshold = max(self._threshold, size)
            return
        end = start + size
        if end in self._starts:
            after = self._starts[end]
            self._remove(end, after)
            end = after
        if start in self._ends:
            before = self._ends[start]
            self._remove(before, start)
            start = before
        if end == self.top and end - start > 2 * self._threshold:
            self.top = start
        else:
            self._insert(start, end)

    def _insert(self, start: int, end: int) -> None:
        insort(self._sizes, (end - start, start))
        self._starts[start], self._ends[end] = end, start

    def _remove(self, start: int, end: int) -> None:
        del self._sizes[bisect_left(self._sizes, (end - start, start))]
        del self._starts[start], self._ends[end]

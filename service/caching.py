"""A cache that is bounded in bytes, not in entries: an entry may have a hundred bytes or a hundred megabytes."""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class ByteCache(Generic[T]):
    """The entries used last, of `limit_bytes` together. One that is larger alone is not kept."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self.held_bytes = 0

    def get(self, key: str) -> T | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: str, value: T, num_bytes: int) -> None:
        _, before = self._entries.pop(key, (None, 0))
        self.held_bytes -= before
        if num_bytes > self._limit_bytes:
            return
        self._entries[key] = value, num_bytes
        self.held_bytes += num_bytes
        while self.held_bytes > self._limit_bytes:
            _, (_, oldest) = self._entries.popitem(last=False)
            self.held_bytes -= oldest

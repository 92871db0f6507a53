"""A memory of arrays that is bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Recent:
    """Arrays by name, at most ``limit`` bytes of them; those used least recently leave first. Thread-safe.

    What is worked out by two threads at once is worked out twice and kept once: nobody waits for another's work.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, Floats] = OrderedDict()
        self._lock = threading.Lock()
        self._size = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._size

    def get(self, name: Hashable, make: Callable[[], Floats]) -> Floats:
        """Return the array of this name, made if it is not held; it is read-only."""
        with self._lock:
            found = self._kept.get(name)
            if found is not None:
                self._kept.move_to_end(name)
                return found
        made = make()
        made.flags.writeable = False
        with self._lock:
            old = self._kept.pop(name, None)
            self._size += made.nbytes - (0 if old is None else old.nbytes)
            self._kept[name] = made
            while self._size > self.limit:
                _, gone = self._kept.popitem(last=False)
                self._size -= gone.nbytes
        return made

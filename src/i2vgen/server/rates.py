"""How often a key may call: a bucket of tokens each, filled at an even rate."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_BUCKETS = 10_000


class RateLimiter:
    """Of one process: several API servers on one database each count for themselves."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.lock = threading.Lock()
        self.buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # (tokens, when)

    def wait_seconds(self, owner: str, kind: str, per_minute: int) -> float:
        """Take one of the `per_minute` calls of this kind: 0 if there was one, or how long until there is.

        A minute's worth may come at once. `per_minute` 0 is no bound.
        """
        if not per_minute:
            return 0.0
        with self.lock:
            time, name = self.clock(), (owner, kind)
            tokens, before = self.buckets.pop(name, (float(per_minute), time))
            tokens = min(float(per_minute), tokens + (time - before) * per_minute / 60)
            is_allowed = tokens >= 1
            self.buckets[name] = (tokens - 1 if is_allowed else tokens, time)
            while len(self.buckets) > MAX_BUCKETS:
                self.buckets.popitem(last=False)
            return 0.0 if is_allowed else (1 - tokens) * 60 / per_minute

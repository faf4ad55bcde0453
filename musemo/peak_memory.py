"""The most memory that a section held, watched from outside: a kernel that died can tell nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import psutil


@contextmanager
def watch_memory(
    every: float = 0.25,  # s between two looks; a shorter peak can be missed
) -> Iterator[dict]:  # "peak": MB, 0 where no process was seen
    "Measure the most memory that processes started meanwhile hold together."
    parent = psutil.Process()
    before, seen, over = set(parent.children(recursive=True)), {"peak": 0}, Event()

    def watch():
        while not over.wait(every):
            held = 0
            for process in set(parent.children(recursive=True)) - before:
                with suppress(psutil.Error):  # it may have ended since
                    held += process.memory_info().rss
            seen["peak"] = max(seen["peak"], round(held / 1e6))

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()

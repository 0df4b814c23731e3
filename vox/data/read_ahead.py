"""Items computed ahead by threads, in order."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

READ_AHEAD_BATCHES = 4  # ready, beside those that the threads are making

Item = TypeVar("Item")
Made = TypeVar("Made")


def read_ahead(items: Iterable[Item], depth: int = READ_AHEAD_BATCHES) -> Iterator[Item]:
    """Yield items that a thread computes ahead, in order; an error in it is raised here."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(entry: tuple[Item | None, BaseException | None]) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(entry, timeout=0.1)
                return

    def produce() -> None:
        try:
            for item in items:
                offer((item, None))
                if stopped.is_set():
                    return
            offer((None, None))
        except BaseException as error:
            offer((None, error))

    thread = threading.Thread(target=produce, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def map_ahead(make: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """Yield make(item) for each item, in order, computed ahead by threads; errors are raised in order too."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
    pending: deque[Future[Made]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) >= threads + READ_AHEAD_BATCHES:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

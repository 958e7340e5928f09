"""Prepare the next items in a worker thread while the current one is used."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """Yield the items in order, computing up to `ahead` of them in advance; an error in the worker is raised here.

    The items must be host data: MLX arrays belong to the thread that made them.
    """
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # noqa: BLE001 (handed to the consumer, which raises it)
            put((_END, error))

    worker = threading.Thread(target=work, daemon=True, name="prefetch")
    worker.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        worker.join()

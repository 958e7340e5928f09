"""Stopping a run without losing work: signals become a flag that the loop reads between steps."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Within it the first SIGINT or SIGTERM only sets what the yielded function returns; a second one stops at once.

    The function returns the signal's number, or 0. Outside the main thread, where Python has no handlers, it is 0.
    """
    received: list[int] = []

    def handle(signum: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\nstopping after this step (signal {signum}); run the same command to continue\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

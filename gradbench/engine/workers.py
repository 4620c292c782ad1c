"""Lanes: where items of work, such as packs, are measured side by side. Here: one thread, or several.

Several cores share a step of one pack badly, and a GPU would idle between the steps of one pack.
"""

from __future__ import annotations

import ctypes
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as first_done
from contextlib import ExitStack
from functools import cache
from typing import Generic, Self, TypeVar

import torch

from gradbench.engine.precision import dedicate, isolated, shared_settings

T = TypeVar("T")
R = TypeVar("R")
HERE = "here"  # the name of all lanes of one process: what one has made warm serves the others


class AbstractLanes(ABC, Generic[T, R]):
    """Where items are measured side by side. Everything is called from one thread, within `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """End what runs."""

    @abstractmethod
    def free(self) -> Iterator[Hashable]:
        """The lanes that take an item now, once for every item; lanes of one name share what is warm."""

    @abstractmethod
    def begin(self, lane: Hashable, item: T) -> None:
        """Begin an item on a lane that is free, without waiting for it."""

    @abstractmethod
    def wait(self) -> list[tuple[T, R]]:
        """Items that are done, with their results; an exception of one is raised. It may return before one is."""


class OneThread(AbstractLanes[T, R]):
    """The thread of the caller, one item after the other. `function` runs under the settings of the engine."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function
        self.items: list[T] = []

    def free(self) -> Iterator[Hashable]:
        """This thread, unless an item waits."""
        yield from () if self.items else (HERE,)

    def begin(self, lane: Hashable, item: T) -> None:
        """Note the item."""
        self.items.append(item)

    def wait(self) -> list[tuple[T, R]]:
        """Measure the item."""
        item = self.items.pop()
        with isolated():
            return [(item, self.function(item))]


class Threads(AbstractLanes[T, R]):
    """Threads, on a GPU each with a stream.

    An operation uses one core, so that no number depends on how many cores there are. An exception that stops the
    caller stops each thread, too, at its next operation. `function` runs under the settings of the engine, and the
    caller never does.
    """

    def __init__(self, function: Callable[[T], R], workers: int, device: str) -> None:
        self.function, self.workers = function, workers
        self.streams = [_stream(device, k) for k in range(workers)] if device.startswith("cuda") else []
        self.busy = set[int]()
        self.running: dict[Future[R], T] = {}
        self.settings = ExitStack()

    def __enter__(self) -> Self:
        self.settings.enter_context(shared_settings())
        self.pool = ThreadPoolExecutor(self.workers, initializer=self._dedicate)
        return self

    def __exit__(self, *raised: object) -> None:
        """Wait for the threads, which are stopped where an exception passes."""
        try:
            if any(raised):
                self.pool.shutdown(wait=False, cancel_futures=True)
                for thread in tuple(self.busy):
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
                    )
            self.pool.shutdown()
        finally:
            self.settings.close()

    def free(self) -> Iterator[Hashable]:
        """As many as there are threads that wait."""
        while len(self.running) < self.workers:
            yield HERE

    def begin(self, lane: Hashable, item: T) -> None:
        """Hand the item to a thread."""
        self.running[self.pool.submit(self._work, item)] = item

    def wait(self) -> list[tuple[T, R]]:
        """Wait until an item is done."""
        done = first_done(self.running, return_when=FIRST_COMPLETED).done
        return [(self.running.pop(future), future.result()) for future in done]

    def _dedicate(self) -> None:
        dedicate()
        if self.streams:
            torch.cuda.set_stream(self.streams.pop())

    def _work(self, item: T) -> R:
        self.busy.add(threading.get_ident())
        try:
            with isolated():
                return self.function(item)
        finally:
            self.busy.discard(threading.get_ident())


@cache
def _stream(device: str, k: int) -> torch.cuda.Stream:
    """The k-th stream, the same in every run: torch keeps memory for the stream that has used it."""
    return torch.cuda.Stream(device)

"""Packs side by side: on the cores of a CPU and on streams of a GPU.

Several cores share a step of one pack badly, and a GPU would idle between the steps of one pack.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from typing import TypeVar

import torch

from gradbench.engine.precision import dedicate, isolated, shared_settings

T = TypeVar("T")
R = TypeVar("R")
_END = object()


def side_by_side(function: Callable[[T], Iterable[R]], items: Sequence[T], workers: int, device: str) -> Iterator[R]:
    """The results of `function` for every item: in order with a single worker, else as items are done.

    A single worker is the thread of the caller. Several workers are threads, on a GPU each with a stream. An operation
    uses one core, so that no number depends on how many cores there are. An exception that stops the caller stops
    each thread, too, at its next operation.
    `function` runs under the settings of the engine, and the caller never does.
    """
    if workers == 1:
        for item in items:
            yield from _isolated(function, item)
        return
    busy = set[int]()
    streams = [_stream(device, k) for k in range(workers)] if device.startswith("cuda") else []

    def begin() -> None:
        dedicate()
        if streams:
            torch.cuda.set_stream(streams.pop())

    def work(item: T) -> list[R]:
        busy.add(threading.get_ident())
        try:
            with isolated():
                return list(function(item))
        finally:
            busy.discard(threading.get_ident())

    with shared_settings():
        pool = ThreadPoolExecutor(workers, initializer=begin)
        try:
            for done in as_completed([pool.submit(work, item) for item in items]):
                yield from done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for thread in tuple(busy):
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt))
            raise
        finally:
            pool.shutdown()


def _isolated(function: Callable[[T], Iterable[R]], item: T) -> Iterator[R]:
    """The results of `function` for an item, each as it comes."""
    results: Iterator[R] | None = None
    while True:
        with isolated():
            results = iter(function(item)) if results is None else results
            result = next(results, _END)
        if result is _END:
            return
        yield result  # type: ignore[misc]  # of type R, since it is not the end


@cache
def _stream(device: str, k: int) -> torch.cuda.Stream:
    """The k-th stream, the same in every run: torch keeps memory for the stream that has used it."""
    return torch.cuda.Stream(device)

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

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(function: Callable[[T], Iterable[R]], items: Sequence[T], workers: int, device: str) -> Iterator[R]:
    """The results of `function` for every item: in order with a single worker, else as items are done.

    A single worker is the thread of the caller, with all cores. Several workers are threads, each with one core or
    one stream of the GPU. An exception that stops the caller stops each thread, too, at its next operation.
    """
    if workers == 1:
        for item in items:
            yield from function(item)
        return
    cores, busy = torch.get_num_threads(), set[int]()

    streams = [_stream(device, k) for k in range(workers)] if device.startswith("cuda") else []

    def begin() -> None:
        if streams:
            torch.cuda.set_stream(streams.pop())
            return
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)  # a setting of each thread

    def work(item: T) -> list[R]:
        busy.add(threading.get_ident())
        try:
            return list(function(item))
        finally:
            busy.discard(threading.get_ident())

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
        torch.set_num_threads(cores)


@cache
def _stream(device: str, k: int) -> torch.cuda.Stream:
    """The k-th stream, the same in every run: torch keeps memory for the stream that has used it."""
    return torch.cuda.Stream(device)

"""Functions recorded as CUDA graphs: a step of hundreds of small launches becomes one."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

PROGRAMS = 512
TRIAL = 2.0**-7  # relative change of the arguments of a trial
AGREE = 1e3  # units of round-off by which a recording may differ from a plain call
_recording = threading.Lock()  # memory cannot be given back while any stream records


class Captured:
    """A function of tensors, recorded once and replayed at one launch a call.

    Every call reads its arguments, and those tensors that the function reads without taking them as arguments, at the
    addresses that these had when the function was recorded. The function may read nothing else that changes.
    The outputs are overwritten by the next call. Derivatives that the function takes must be recorded inside of it:
    a backward pass runs on the stream of its forward pass, and only the stream of the recording is captured.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *examples: Tensor, compiled: bool = False) -> None:
        self._function = function  # keeps the tensors that it reads alive: nobody else may hold them
        self._inputs = [example.detach().clone() for example in examples]
        stream = _recording_stream(torch.cuda.current_stream())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # makes handles, workspaces and cached constants outside of the recording, and outside of the compiled
            # program: a program that had cached a constant itself would not fit its second call
            function(*self._inputs)
            if compiled:
                # the source line of a function is compiled once for every system, rule and shape
                torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
                function = torch.compile(function, fullgraph=True, dynamic=False)
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        with _recording, _no_collection(), torch.cuda.stream(stream):
            # a recording gets a separate pool of memory: at most as much as the calls above have left unused
            if torch.cuda.mem_get_info()[0] < unused():
                torch.cuda.empty_cache()
            self._graph = torch.cuda.CUDAGraph()
            # not torch.cuda.graph, which waits for the device and gives all its memory back, at every recording
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._outputs = function(*self._inputs)
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The outputs for these inputs, of the shapes of the examples."""
        for buffer, value in zip(self._inputs, values, strict=True):
            if buffer is not value:  # a function that writes into its arguments returns the buffers themselves
                buffer.copy_(value)
        self._graph.replay()
        return self._outputs


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage is collected: to destroy a graph of the past may break off a recording in the same thread."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def agreeing(function: Callable[..., tuple[Tensor, ...]], *examples: Tensor) -> Captured | None:
    """The function recorded, where a trial of the recording agrees with a plain call; None elsewhere.

    Code of a caller may do what no recording can hold: wait for the device, branch on a number, keep what it computed
    once. The trial is on other numbers than those of the recording, so that a number that was kept is noticed.
    """
    try:
        recorded = Captured(function, *examples)
        others = [v * (1 + TRIAL) if v.is_floating_point() else v for v in examples]
        expected = function(*(v.clone() for v in others))
        agree = [_close(a, b) for a, b in zip(recorded(*others), expected, strict=True)]
    except Exception:  # whatever is wrong with the function itself, a plain call tells
        return None
    return recorded if all(agree) else None


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    both = a.isfinite() & b.isfinite()
    if not bool((both | (a == b) | (a.isnan() & b.isnan())).all()):
        return False
    gap, size = (v[both].abs().amax() if bool(both.any()) else v.new_zeros(()) for v in (a - b, b))
    return bool(gap <= AGREE * torch.finfo(a.dtype).eps * size)


def unused(device: str | None = None) -> int:
    """Bytes of a GPU that torch keeps for later tensors: the GPU counts them as taken, and `empty_cache` frees them."""
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@cache
def _recording_stream(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """The one stream of all recordings made for `stream`: a stream that runs a product keeps a workspace of 32 MiB."""
    return torch.cuda.Stream(stream.device)

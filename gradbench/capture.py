"""Functions recorded as CUDA graphs: a step of hundreds of small launches becomes one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

PROGRAMS = 512
_recording = threading.Lock()  # memory cannot be given back while any stream records


class Captured:
    """A function of tensors that reads nothing else that changes, replayed at one launch a call.

    What it reads beside its arguments is read anew by every call, at the address that it had when it was recorded.
    Its outputs are overwritten by the next call. Derivatives that it takes must be recorded inside of it:
    a backward pass runs on the stream of its forward pass, and only the recording's own is captured.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *examples: Tensor, compiled: bool = False) -> None:
        self._function = function  # and with it what it reads, which nobody else may hold
        self._inputs = [example.detach().clone() for example in examples]
        stream = _beside(torch.cuda.current_stream())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # handles, workspaces and cached constants come to be outside of the recording, and of the program too:
            # one that had cached something itself would not fit its own second call
            function(*self._inputs)
            if compiled:
                # one source line is a program of its own for every system, rule and shape that comes by
                torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, PROGRAMS)
                function = torch.compile(function, fullgraph=True, dynamic=False)
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        with _recording, torch.cuda.stream(stream):
            # a recording gets memory of its own, as much at most as the function has left unused by now
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
        for own, value in zip(self._inputs, values, strict=True):
            if own is not value:  # a function that writes into its arguments gives them back
                own.copy_(value)
        self._graph.replay()
        return self._outputs


def unused(device: str | None = None) -> int:
    """Bytes of a GPU that torch keeps for tensors to come: they count as taken, and are given back when asked for."""
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@cache
def _beside(stream: torch.cuda.Stream) -> torch.cuda.Stream:
    """That of all recordings made for a stream: each that meets a product keeps a workspace of 32 MiB."""
    return torch.cuda.Stream(stream.device)

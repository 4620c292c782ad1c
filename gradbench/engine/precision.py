"""Settings of the measured path: set by the engine, never inherited, and put back afterwards.

A setting belongs to a thread or to the process. Those of a thread are set by every thread that measures. Those of the
process are set by the first thread that begins to measure, and put back by the last one that ends.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch._C import _autograd as hooks
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import _disable_current_modes

PARTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
FLAGS: dict[str, object] = {"fp32_precision": dict.fromkeys(PARTS, "ieee"), "flush_denormal": True}
ATTENTION = ("flash", "mem_efficient", "cudnn", "math")  # kernels of scaled_dot_product_attention
BACKENDS: Any = torch.backends
CORES = 1  # of one measurement on a CPU: sums are split by their number, so that another number is another last digit
Result = TypeVar("Result")
SMALLEST = sys.float_info.min  # half of it is a denormal number


class _Setting(NamedTuple):
    """A setting of the process: how it is read and set, and its value in a plain interpreter."""

    read: Callable[[], Any]
    change: Callable[[Any], object]
    plain: Any


def _set_deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def _set_attention(kernels: tuple[bool, ...]) -> None:
    for name, enabled in zip(ATTENTION, kernels, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)


def _of_module(module: Any, name: str, plain: bool) -> _Setting:
    return _Setting(lambda: getattr(module, name), lambda v: setattr(module, name, v), plain)


def _older(read: Callable[[], Any], change: Callable[[Any], object], default: object, plain: object) -> _Setting:
    """One of torch's older switches of the float32 precision. It raises when read while a newer one contradicts it.

    None stands for a switch that raises: set to its default, it raises again once the newer ones are as they were.
    """

    def readable() -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    return _Setting(readable, lambda v: change(default if v is None else v), plain)


def _float32_part(name: str) -> _Setting:
    """The float32 precision of one kind of operations; "none" where it follows the one for all operations."""

    def read() -> str:
        part, whole = attrgetter(name)(BACKENDS), BACKENDS.fp32_precision
        precision: str = part.fp32_precision
        # torch begins with tf32 for cuDNN where nothing is set for all, a state that nobody can set again: of it the
        # precision is put back
        return "none" if whole != "none" and _follows(part) else precision

    def change(precision: str) -> None:
        attrgetter(name)(BACKENDS).fp32_precision = precision

    return _Setting(read, change, "ieee")


def _follows(part: Any) -> bool:
    """Whether a part has the precision for all operations. torch does not tell, so that one is changed for a moment."""
    before, seen = BACKENDS.fp32_precision, []
    for precision in ("ieee", "tf32"):
        BACKENDS.fp32_precision = precision
        seen.append(part.fp32_precision == precision)
    BACKENDS.fp32_precision = before
    return all(seen)


# the older switches of the precision come before the newer ones, which they set
_SETTINGS = (
    *(
        _older(partial(getattr, module, "allow_tf32"), partial(setattr, module, "allow_tf32"), default, False)
        for module, default in ((torch.backends.cuda.matmul, False), (torch.backends.cudnn, True))
    ),
    _older(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest", "highest"),
    *map(_float32_part, PARTS),
    _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _Setting(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
        (False, False),
    ),
    _Setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda mode: torch.autograd.set_detect_anomaly(*mode),
        (False, True),
    ),
    # the only ones with derivatives of second order
    _Setting(
        lambda: tuple(getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ATTENTION),
        _set_attention,
        tuple(name == "math" for name in ATTENTION),
    ),
    _Setting(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False),
    # these choose between kernels whose last digits differ
    _Setting(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, True),
    _Setting(torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled, True),
    _of_module(torch.backends.opt_einsum, "enabled", torch.backends.opt_einsum.is_available()),
    _of_module(torch.backends.cudnn, "enabled", True),
    _of_module(torch.backends.cudnn, "benchmark", False),
    _of_module(torch.backends.cudnn, "deterministic", False),
)


class _Process:
    """The settings of the process, and how many measurements need them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measuring = 0
        self._cores = 0  # that a new thread begins with outside of measurements
        self._before: dict[int, Any] = {}  # what the process has set last, by the place of a setting

    def begin(self) -> int:
        """Count one measurement more. Returns the number of cores to put back at its end."""
        with self._lock:
            cores = torch.get_num_threads()
            if self._measuring == 0:
                self._cores = cores if cores != CORES else _in_new_thread(torch.get_num_threads)
            elif cores == CORES and not _thread.measures:  # a new thread begins with what another one has set
                cores = self._cores
            self._set_plain()
            self._measuring += 1
        return cores

    def end(self) -> None:
        """Count one measurement less."""
        with self._lock:
            self._measuring -= 1
            if self._measuring == 0:
                self._put_back()
                _of_process(self._cores)

    def set_cores(self, cores: int) -> None:
        """Set the number of cores of this thread, while others may measure."""
        with self._lock:
            torch.set_num_threads(cores)
            if self._measuring > 1 and cores != CORES:
                _of_process(CORES)

    def _set_plain(self) -> None:
        """Set what is not as in a plain interpreter. While others measure, the process may have set it meanwhile."""
        for i, value in enumerate([setting.read() for setting in _SETTINGS]):
            if value != _SETTINGS[i].plain:
                _SETTINGS[i].change(_SETTINGS[i].plain)
                self._before[i] = value

    def _put_back(self) -> None:
        """Set what was set before; what the process has set since then stays."""
        for i, value in enumerate([setting.read() for setting in _SETTINGS]):
            if i in self._before and value == _SETTINGS[i].plain:
                _SETTINGS[i].change(self._before[i])
        self._before.clear()


class _Thread(threading.local):
    """What is known of the running thread."""

    measures = False  # whether a measurement has begun here and has not ended


_process, _thread = _Process(), _Thread()


def _of_process(cores: int) -> None:
    """Set the number of cores that MKL uses and that new threads begin with, which torch sets with that of a thread."""
    if torch.get_num_threads() == cores:
        torch.set_num_threads(cores)
        return
    _in_new_thread(lambda: torch.set_num_threads(cores))


def _in_new_thread(function: Callable[[], Result]) -> Result:
    """The result of a short function that is run in a thread of its own."""
    results: list[Result] = []
    other = threading.Thread(target=lambda: results.append(function()))
    other.start()
    other.join()
    return results[0]


def dedicate() -> None:
    """Make the running thread one that measures until it ends: its number of cores is set once."""
    _thread.measures = True
    torch.set_num_threads(CORES)


@contextmanager
def shared_settings() -> Iterator[None]:
    """Hold the settings of the process, for a thread that lets other threads measure."""
    _process.begin()
    try:
        yield
    finally:
        _process.end()


@contextmanager
def isolated(cores: int | None = CORES) -> Iterator[dict[str, object]]:
    """The settings of the measured path, whatever the caller has set; at the end the settings are as they were before.

    Autograd, number types, devices and modes are those of a plain interpreter. Products of float32 are IEEE float32 on
    every device: TF32 noise alone moves a centred estimate by 1e-2 at beta = 1e-3. Denormal numbers are flushed, which
    slow the CPU 5-10 times in long sweeps. `cores` is the number of cores that an operation may use; None leaves it.
    """
    before, outer = _process.begin(), _thread.measures
    _thread.measures = True
    try:
        if cores is not None and torch.get_num_threads() != cores:
            torch.set_num_threads(cores)
        # leaving inference mode sets gradients and threads of autograd as in a plain interpreter, too
        plain = (torch.inference_mode(False), np.errstate(all="ignore"), _no_modes(), _no_autocast(), _flushed())
        with ExitStack() as settings:
            for setting in plain:
                settings.enter_context(setting)
            yield FLAGS
    finally:
        if cores is not None and torch.get_num_threads() != before:
            _process.set_cores(before)
        _thread.measures = outer
        _process.end()


@contextmanager
def _no_modes() -> Iterator[None]:
    """Take off what the thread puts around operations.

    These are a default device and other function modes, dispatch modes, transforms of torch.func, and hooks of saved
    tensors.
    """
    modes = [_pop_mode() for _ in _get_current_function_mode_stack()]
    pairs = []
    while (pair := hooks._top_saved_tensors_default_hooks(False)) is not None:
        hooks._pop_saved_tensors_default_hooks()
        pairs.append(pair)
    try:
        with _disable_current_modes(), temporarily_clear_interpreter_stack():
            yield
    finally:
        for pair in reversed(pairs):
            hooks._push_saved_tensors_default_hooks(*pair)
        for mode in reversed(modes):
            _push_mode(mode)


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Switch autocast off for the devices that are measured on."""
    enabled = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)


@contextmanager
def _flushed() -> Iterator[None]:
    """Flush denormal numbers. A product tells whether this thread flushes them already, which torch does not."""
    flushing = SMALLEST / 2 == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushing)

"""The edge of Python: nothing that the caller has set bends a number, and what is handed over is taken by value."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import gradbench as gb
from gradbench.commands.running import prepare
from gradbench.commands.trainings import train
from gradbench.commands.tuning import tune
from gradbench.engine import precision
from gradbench.estimators.ep import Ep
from gradbench.planning import registry
from gradbench.systems.toy_cons import ToyCons
from gradbench.systems.toy_noncons import ToyNoncons
from gradbench.vocabulary.coordinates import COORDINATES

SMALL = {"N": 2, "D": 4, "heads": 2, "out": 2, "drive_std": 1.0}
CALL: dict[str, Any] = {"damp": 3.0, "T1": 20, "T2": 5, "batch": 2}
TIME = ("seconds", "peak_memory")


def measure(system: str = "toy_noncons", estimator: str = "aep", **more: Any) -> gb.api.Measurement:  # type: ignore[name-defined]
    options = {"system_options": SMALL} if system == "toy_noncons" else {}
    used = CALL if system != "residual_mlp" else {n: v for n, v in CALL.items() if n in ("T2", "batch")}
    return gb.measure(system, estimator, **{**used, **options, **more})


def fingerprint(m: Any) -> str:
    """All that a measurement says, to the last digit."""
    gradients = {n: g.tolist() for n, g in {**(m.estimate or {}), **(m.reference or {})}.items()}
    return repr(({k: v for k, v in m.row.items() if k not in TIME}, m.cosines, m.blocks, m.budget, gradients))


def read(setting: Callable[[], Any]) -> Any:
    """A setting; torch refuses to tell some where two of its interfaces contradict each other."""
    try:
        return setting()
    except RuntimeError:
        return "refused"


def state() -> dict[str, Any]:
    """What the caller has set, in this thread and in this process."""
    modes = torch.overrides._get_current_function_mode_stack()
    return {
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "threads of autograd": torch._C._is_multithreading_enabled(),
        "device": torch.get_default_device(),
        "modes": [id(mode) for mode in modes],
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "check NaN": torch.is_anomaly_check_nan_enabled(),
        "precision": read(torch.get_float32_matmul_precision),
        "precision by part": [attrgetter(part)(torch.backends).fp32_precision for part in precision.PARTS],
        "dispatch modes": torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
        "transform": torch._C._functorch.peek_interpreter_stack() is None,
        "kernels": [torch._C._get_mkldnn_enabled(), torch._C._get_nnpack_enabled(), torch.backends.opt_einsum.enabled],
        "cudnn": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "flushing": precision.SMALLEST / 2 == 0,
        "errors of numpy": np.geterr(),
    }


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def changed(change: Callable[[Any], object], value: Any, plain: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(plain)


def deterministic(mode: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])


def benchmark(value: bool) -> None:
    torch.backends.cudnn.benchmark = value


def in_half(*_: Any) -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Doubling(torch.overrides.TorchFunctionMode):
    """A mode that changes what operations compute."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return 2 * result if function is torch.addcmul else result


class Rounding(torch.utils._python_dispatch.TorchDispatchMode):
    """A mode below autograd that changes what operations compute."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result.bfloat16().to(result.dtype) if getattr(result, "dtype", None) is torch.float32 else result


@contextlib.contextmanager
def inside_of_a_transform() -> Iterator[None]:
    """As in a function that torch.func.grad differentiates."""
    level = torch._C._functorch._grad_increment_nesting()
    try:
        assert level == 1
        yield
    finally:
        torch._C._functorch._grad_decrement_nesting()


PROCESSES: dict[str, Callable[[], Any]] = {
    "autocast": in_half,
    "autocast of CUDA": lambda: torch.autocast("cuda", enabled=True) if torch.cuda.is_available() else in_half(),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "gradients switched off": lambda: torch.set_grad_enabled(False),
    "default device": lambda: default_device("meta"),
    "default device in a block": lambda: torch.device("meta"),
    "default dtype float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "default dtype bfloat16": lambda: changed(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "deterministic": lambda: changed(deterministic, (True, False), (False, False)),
    "deterministic, warnings": lambda: changed(deterministic, (True, True), (False, False)),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "anomaly without NaN": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "medium products": lambda: changed(torch.set_float32_matmul_precision, "medium", "highest"),
    "high products": lambda: changed(torch.set_float32_matmul_precision, "high", "highest"),
    "benchmark of cudnn": lambda: changed(benchmark, True, False),
    "one thread": lambda: changed(torch.set_num_threads, 1, torch.get_num_threads()),
    "three threads": lambda: changed(torch.set_num_threads, 3, torch.get_num_threads()),
    "denormals flushed": lambda: changed(torch.set_flush_denormal, True, False),
    "errors of numpy": lambda: np.errstate(all="raise"),
    "a function mode": Doubling,
    "saved-tensor hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x * 2, lambda x: x),
    "saved on the CPU": torch.autograd.graph.save_on_cpu,
    "a dispatch mode": Rounding,
    "fake tensors": lambda: torch._subclasses.FakeTensorMode(),
    "inside of torch.func.grad": inside_of_a_transform,
    "without oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
    "without NNPACK": lambda: torch.backends.nnpack.flags(enabled=False),
    "tf32 for all": lambda: changed(lambda v: setattr(torch.backends, "fp32_precision", v), "tf32", "none"),
    "autograd of one thread": lambda: torch.autograd.set_multithreading_enabled(False),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("system", ["toy_noncons", "residual_mlp"])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_row_is_that_of_a_plain_interpreter_and_the_caller_is_as_before(process: str, system: str) -> None:
    more = {"system_options": {"d_in": 784, "d": 8, "L": 2}, "T2": 3} if system == "residual_mlp" else {}
    plain = measure(system, "ep", **more)
    with PROCESSES[process]():
        before = state()
        there = measure(system, "ep", **more)
        after = state()
    assert before == after
    assert fingerprint(plain) == fingerprint(there)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_all_settings_at_once_change_no_row_of_a_run(write_suite: Any, cores: Callable[[int], None]) -> None:
    suite = write_suite()
    plain = gb.run(suite, out=suite.parent / "plain", device="cpu").cells.drop(columns=list(TIME))
    with contextlib.ExitStack() as stack:
        for name, process in PROCESSES.items():
            if name not in ("inside of torch.func.grad", "fake tensors"):  # torch cannot tell a default device inside
                stack.enter_context(process())
        before = state()
        there = gb.run(suite, out=suite.parent / "there", device=torch.device("cpu")).cells  # type: ignore[arg-type]
        assert before == state()
    pd.testing.assert_frame_equal(plain, there.drop(columns=list(TIME)), check_exact=True)


def test_the_number_of_cores_changes_no_digit(cores: Callable[[int], None]) -> None:
    """Sums of more than 32,768 numbers are split by the number of threads."""
    told = []
    for number in (1, 2, 3):
        cores(number)
        told.append(fingerprint(gb.measure("cet_real", "ep", damp=1.0, T1=3, T2=2, batch=32)))
        assert torch.get_num_threads() == number
    assert len(set(told)) == 1


@pytest.mark.fast
def test_an_error_inside_puts_everything_back() -> None:
    with in_half(), torch.no_grad(), torch.device("meta"):
        before = state()
        with pytest.raises(gb.UserError):
            measure(data={"x0": [[1.0, float("nan")]]})
        with pytest.raises(ZeroDivisionError), precision.isolated():
            _ = 1 / 0
        assert before == state()


def test_nested_settings_are_those_of_the_outermost(cores: Callable[[int], None]) -> None:
    cores(2)
    with precision.isolated():
        with precision.isolated():
            pass
        assert torch.get_num_threads() == 1
        assert precision.SMALLEST / 2 == 0
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.get_num_threads() == 2


def test_threads_that_measure_at_the_same_time_change_no_number_and_keep_what_they_set(
    cores: Callable[[int], None],
) -> None:
    cores(2)
    calls = [{"dtype": dtype, "seed": seed} for dtype in ("float32", "float64") for seed in (0, 1)]
    plain = [fingerprint(measure(**call)) for call in calls]
    together = threading.Barrier(len(calls), timeout=60)

    def work(call: dict[str, Any]) -> tuple[list[str], bool]:
        with in_half() if call["seed"] else torch.inference_mode():
            together.wait()
            before = state()
            told = [fingerprint(measure(**call)) for _ in range(3)]
            together.wait()
            after = state()
        private = ("autocast", "inference", "grad", "flushing", "modes", "device", "threads of autograd")
        # a thread that asks while another one measures may read its number of threads
        return told, all(before[name] == after[name] for name in private) and after["threads"] in (before["threads"], 2)

    before = state()
    with ThreadPoolExecutor(len(calls)) as pool:
        results = list(pool.map(work, calls))
    assert before == state()
    assert [told for told, _ in results] == [[told] * 3 for told in plain]
    assert all(same for _, same in results)


def test_what_is_set_while_another_thread_measures_bends_nothing_and_stays() -> None:
    options = {"system_options": {"d_in": 784, "d": 8, "L": 2}, "T2": 3}
    plain, begun, end = fingerprint(measure("residual_mlp", "ep", **options)), threading.Event(), threading.Event()

    def other() -> None:
        with precision.isolated():
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    torch.set_float32_matmul_precision("medium")
    try:
        assert fingerprint(measure("residual_mlp", "ep", **options)) == plain
        end.set()
        thread.join()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        end.set()
        torch.set_float32_matmul_precision("highest")


def test_a_precision_for_all_reaches_every_part_afterwards() -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        measure()
        torch.backends.fp32_precision = "ieee"
        parts = {part: attrgetter(part)(torch.backends).fp32_precision for part in precision.PARTS}
        assert {parts[part] for part in parts if not part.startswith("cudnn")} == {"ieee"}
    finally:
        torch.backends.fp32_precision = "none"


def test_warnings_and_the_frozen_heap_of_the_caller_are_left_alone(write_suite: Any) -> None:
    gc.freeze()
    try:
        frozen, filters = gc.get_freeze_count(), list(warnings.filters)
        suite = write_suite()
        gb.run(suite, out=suite.parent / "out", device="cpu")
        assert gc.get_freeze_count() > 0.9 * frozen  # the frozen objects die as any others do
        assert warnings.filters == filters
    finally:
        gc.unfreeze()


def test_a_thread_begun_while_another_measures_has_the_cores_of_the_process_afterwards(
    cores: Callable[[int], None],
) -> None:
    cores(2)
    threads = []

    def fresh() -> None:
        measure()
        threads.append(torch.get_num_threads())

    with precision.isolated():
        other = threading.Thread(target=fresh)
        other.start()
        other.join()
        assert torch.get_num_threads() == 1
    assert threads == [2]
    assert torch.get_num_threads() == 2


def test_the_caller_is_as_before_while_a_run_tells_its_progress(write_suite: Any, cores: Callable[[int], None]) -> None:
    cores(1)  # one worker: the thread of the caller
    suite, seen = write_suite(), []
    with in_half(), torch.inference_mode():
        before = state()
        gb.run(suite, out=suite.parent / "out", device="cpu", watch=lambda progress: seen.append(state()))
    assert all(there == before for there in seen)


def test_the_settings_cost_less_than_a_millisecond() -> None:
    from time import perf_counter

    seconds = []
    for _ in range(50):
        start = perf_counter()
        with precision.isolated():
            pass
        seconds.append(perf_counter() - start)
    assert min(seconds) < 1e-3


def test_the_interpreter_changes_no_row() -> None:
    flags = ["-OO", "-W", "error", "-X", "dev"]
    code = "import gradbench as gb; print(gb.measure('toy_cons', 'ep', damp=3.0, T1=20, T2=5, batch=2).row)"
    there = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr
    told = eval(there.stdout, {"nan": float("nan"), "inf": float("inf")})
    plain = measure("toy_cons", "ep").row
    assert {n for n in plain if repr(plain[n]) != repr(told[n])} <= set(TIME)


def test_definitions_are_there_without_docstrings() -> None:
    code = (
        "from gradbench.planning import registry as r\n"
        "for c in (*r.known_systems().values(), *r.known_estimators().values()): print(r.summary(c))"
    )
    plain, there = (
        subprocess.run([sys.executable, *some, "-c", code], capture_output=True, text=True, check=True).stdout
        for some in ([], ["-OO"])
    )
    assert there == plain
    assert "img: 'int'" not in there


def test_importing_is_light_and_user_error_is_public() -> None:
    code = "import sys, gradbench; print({'torch', 'numpy'} & set(sys.modules)); print(gradbench.UserError.__name__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "set()\nUserError\n"


# what is handed over

X0 = torch.randn((3, 2, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64).round(decimals=3)


@dataclass
class Wrapped:
    """An object that numpy can read."""

    values: Any

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.values)


class Subclass(torch.Tensor):
    """A tensor of another class."""


VALUES: dict[str, Callable[[], Any]] = {
    "numpy": X0.numpy,
    "numpy, another order": lambda: np.asfortranarray(X0.numpy()),
    "numpy, not contiguous": lambda: np.repeat(X0.numpy(), 2, 0)[::2],
    "numpy, backwards": lambda: X0.numpy()[::-1].copy()[::-1],
    "numpy, another byte order": lambda: X0.numpy().astype(">f8"),
    "numpy, read only": lambda: np.frombuffer(X0.numpy().tobytes()).reshape(3, 2, 4),
    "longdouble": lambda: X0.numpy().astype(np.longdouble),
    "lists": X0.tolist,
    "tuples": lambda: tuple(tuple(tuple(row) for row in part) for part in X0.tolist()),
    "list of arrays": lambda: list(X0.numpy()),
    "list of tensors": lambda: list(X0),
    "list of tensors with gradients": lambda: list(X0.clone().requires_grad_()),
    "decimals": lambda: [[[Decimal(repr(v)) for v in row] for row in part] for part in X0.tolist()],
    "fractions": lambda: [[[Fraction(v) for v in row] for row in part] for part in X0.tolist()],
    "objects": lambda: X0.numpy().astype(object),
    "array protocol": lambda: Wrapped(X0.numpy()),
    "tensor": X0.clone,
    "not contiguous": lambda: X0.repeat(1, 1, 2)[..., :4],
    "transposed": lambda: X0.mT.contiguous().mT,
    "expanded": lambda: X0.expand(1, 3, 2, 4)[0],
    "with a gradient": lambda: X0.clone().requires_grad_(),
    "of a graph": lambda: X0.clone().requires_grad_() * 1,
    "a Parameter": lambda: torch.nn.Parameter(X0.clone()),
    "a subclass": lambda: X0.clone().as_subclass(Subclass),
    "sparse": X0.to_sparse,
    "negative view": lambda: torch._neg_view(-X0),
    "of inference mode": lambda: torch.inference_mode()(X0.clone)(),
}


@pytest.mark.fast
@pytest.mark.parametrize("kind", VALUES)
def test_numbers_are_taken_by_value(kind: str) -> None:
    value = VALUES[kind]()
    plain, there = (measure(batch=None, dtype="float64", data={"x0": v}) for v in (X0, value))
    assert fingerprint(plain) == fingerprint(there)
    assert there.row["batch"] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8, torch.int16])
def test_numbers_of_any_dtype_are_taken_by_value(dtype: torch.dtype) -> None:
    value = torch.arange(24).reshape(3, 2, 4).to(dtype)
    same = [measure(batch=None, data={"x0": v}) for v in (value, value.double(), value.tolist())]
    assert len({fingerprint(m) for m in same}) == 1


def test_given_tensors_are_not_changed_and_not_shared() -> None:
    params = {"b": torch.ones(4), "WQ": torch.eye(4, dtype=torch.float64)}
    data = {"x0": X0.float(), "R": torch.ones(8, 2)}
    before = {n: v.clone() for n, v in (params | data).items()}
    m = measure("toy_noncons", "bptt", batch=None, params=params, data=data)
    addresses = {v.untyped_storage().data_ptr() for v in (params | data).values()}
    gradients = [*m.estimate.values(), *m.reference.values()]
    assert all(torch.equal(before[n], v) for n, v in (params | data).items())
    pointers = [g.untyped_storage().data_ptr() for g in gradients]
    assert not addresses & set(pointers)
    assert len(set(pointers)) == len(pointers)


def test_what_is_not_asked_for_by_name_is_taken_from_any_table() -> None:
    plain = measure(params={"b": [0.5, 0.5, 0.5, 0.5]})
    for table in (torch.nn.ParameterDict({"b": torch.full((4,), 0.5)}), pd.DataFrame({"b": [0.5] * 4})):
        assert fingerprint(measure(params=table)) == fingerprint(plain)


class _Unreadable(dict[str, Any]):
    def items(self) -> Any:
        raise KeyError("no")


# words as a program may keep them; `str` of one is its name
Words: Any = Enum("Words", {"dtype": "float32", "system": "toy_noncons", "device": "cpu"}, type=str)


def _nested(depth: int) -> list[Any]:
    deep: list[Any] = [1.0]
    for _ in range(depth):
        deep = [deep]
    return deep


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "complex": ({"params": {"b": np.zeros(4, complex)}}, "params['b']: got complex numbers, expected"),
    "complex in a list": ({"params": {"b": [1j, 0, 0, 0]}}, "params['b']: got complex"),
    "bool": ({"params": {"b": [True] * 4}}, "params['b']: got true and false (bool), expected numbers"),
    "np.bool_": ({"params": {"b": np.ones(4, np.bool_)}}, "params['b']: got true and false"),
    "bool among objects": ({"params": {"b": np.array([Decimal(1), True, 0, 0], object)}}, "with a bool in it"),
    "NaN": ({"params": {"b": [0, 0, 0, float("nan")]}}, "params['b']: got NaN, expected finite numbers"),
    "inf": ({"data": {"x0": X0 / 0.0}}, "data['x0']: got"),
    "beyond float32": ({"data": {"x0": X0 * 1e300}}, "expected numbers that float32 can hold"),
    "beyond float64": ({"params": {"b": [10**400, 0, 0, 0]}}, "params['b']: got a number that float64 cannot hold"),
    "decimal NaN": ({"params": {"b": [Decimal("nan")] * 4}}, "params['b']: got NaN"),
    "None": ({"params": {"b": None}}, "params['b']: got None, expected an array of numbers"),
    "None in a list": ({"params": {"b": [None, 0, 0, 0]}}, "with None in it"),
    "text": ({"params": {"b": "1234"}}, "params['b']: got a str"),
    "texts": ({"params": {"b": list("1234")}}, "params['b']: got a list of <U1"),
    "dates": ({"params": {"b": np.zeros(4, "M8[s]")}}, "params['b']: got an ndarray of datetime64[s]"),
    "a table": ({"params": {"b": {"x": 1}}}, "params['b']: got a dict"),
    "a set": ({"params": {"b": {1, 2}}}, "params['b']: got a set"),
    "a generator": ({"params": {"b": (i for i in range(4))}}, "params['b']: got a generator"),
    "a function": ({"params": {"b": torch.zeros}}, "params['b']: got a builtin"),
    "a module": ({"params": {"b": torch.nn.Linear(4, 1)}}, "params['b']: got a Linear"),
    "ragged": ({"params": {"b": [[1, 2], [3]]}}, "params['b']: got a list that is no array"),
    "nested": ({"params": {"b": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])}}, "got a nested tensor"),
    "uninitialized": (
        {"params": {"b": torch.nn.UninitializedParameter()}},
        "got an UninitializedParameter that cannot",
    ),
    "unreadable table": ({"params": _Unreadable()}, "params: got a _Unreadable that cannot be read (KeyError: 'no')"),
    "deep": ({"params": {"b": _nested(2000)}}, "params['b']: got lists more than 64 deep in each other"),
    "true in a list": ({"params": {"b": [True, 2.0, 3, 4]}}, "got a list with true or false among numbers"),
    "np.bool_ in a list": ({"params": {"b": [1.0, np.bool_(1), 3, 4]}}, "got a list with true or false among numbers"),
    "x0 beyond squares": ({"data": {"x0": X0 * 1e30}}, "x0 has numbers of up to"),
    "masked": ({"params": {"b": np.ma.array(np.zeros(4), mask=[1, 0, 0, 0])}}, "masked entries"),
    "empty": ({"data": {"x0": torch.zeros(0, 2, 4)}}, "data['x0']: got shape (0, 2, 4), which holds no number"),
    "meta": ({"params": {"b": torch.zeros(4, device="meta")}}, "params['b']: got a tensor on the device meta"),
    "0-d": ({"params": {"b": torch.tensor(0.0)}}, "params['b']: got shape (), expected (4,)"),
    "a number": ({"params": {"b": 0.0}}, "params['b']: got shape (), expected (4,)"),
    "2-d": ({"params": {"b": torch.zeros(1, 4)}}, "params['b']: got shape (1, 4), expected (4,)"),
    "1-d x0": ({"data": {"x0": torch.zeros(2)}}, "data['x0']: got shape (2,), expected (2, 2, 4)"),
    "0-d target": ({"data": {"target": 1.0}}, "data['target']: got shape (), expected (8, 2)"),
    "unknown parameter": ({"params": {"wq": torch.zeros(4)}}, "params['wq']: toy_noncons has no such parameter. Did"),
    "unknown data": ({"data": {"y": torch.zeros(4)}}, "data['y']: toy_noncons has no such data"),
    "a key that is no name": ({"params": {0: torch.zeros(4)}}, "params: got the key 0, expected a name"),
    "a module for params": ({"params": torch.nn.Linear(4, 1)}, "params: got a Linear, expected a table of arrays"),
    "a list for data": ({"data": [X0]}, "data: got a list, expected a table of arrays by name"),
    "batch and data": ({"batch": 5, "data": {"x0": X0}}, "batch = 5: data['x0'] has 3 examples"),
    "batches": ({"data": {"x0": X0, "target": torch.zeros(2, 2)}}, "disagree on the number of examples: 2 of target"),
    "size": (
        {"system_options": {"heads": 4}, "data": {"x0": X0[..., :3]}},
        "(read from params and data: N = 2, D = 3)",
    ),
    # coordinates
    "T1": ({"T1": 0}, "T1 = 0 is below 1"),
    "T1 huge": ({"T1": 10**9}, "T1 = 1000000000 is above 10,000,000"),
    "T1 of 19 digits": ({"T1": 10**18}, "is above 10,000,000"),
    "T1 of 20 digits": ({"T1": 10**19}, "is above 9223372036854775807"),
    "T2 huge": ({"T2": 10**12}, "T2 = 1000000000000 is above 10,000,000"),
    "T1 masked": ({"T1": np.ma.masked}, "T1 = masked is not a number"),
    "T1 half": ({"T1": 2.5}, "T1 = 2.5 is not a whole number"),
    "T1 word": ({"T1": "many"}, "T1 = 'many' is not a number"),
    "T1 bool": ({"T1": True}, "T1 = True is not a number"),
    "T1 np.bool_": ({"T1": np.bool_(True)}, "T1 = True is not a number"),
    "T1 array": ({"T1": np.array([20, 30])}, "T1 = [20, 30]: measure compares one cell; gradbench.suite takes lists"),
    "T1 complex": ({"T1": 3 + 0j}, "T1 = (3+0j) is not a number"),
    "T1 NA": ({"T1": pd.NA}, "T1 = <NA> is not a number"),
    "T1 list": ({"T1": [5, 10]}, "T1 = [5, 10]: measure compares one cell"),
    "T2 of meta": ({"T2": torch.tensor(3, device="meta")}, "is not a number"),
    "beta NaN": ({"beta": float("nan")}, "beta = nan is not finite"),
    "beta zero": ({"beta": np.float32(0)}, "beta = 0.0 is not positive"),
    "beta denormal": ({"beta": 1e-310}, "beta = a number that is not 0 and below 2.2e-308 is too small"),
    "beta denormal, float64": ({"beta": 1e-320, "dtype": "float64"}, "and below 2.2e-308 is too small"),
    "eps denormal": ({"eps": np.float64(1e-320)}, "eps = a number that is not 0 and below 2.2e-308 is too small"),
    "beta denormal in float32": ({"beta": 1e-40}, "beta = 1e-40 is too small for float32"),
    "beta of numpy, denormal": ({"beta": np.float32(1e-40)}, "is too small for float32"),
    "damp beyond float32": ({"damp": 1e300}, "= 1e+300 is too large for float32"),
    "s beyond float32": ({"s": 1e39}, "s = 1e+39 is too large for float32, which holds numbers of up to 3.4e+38"),
    "beta huge": ({"beta": 10**400}, "beta = a number of more than 300 digits"),
    "beta decimal": ({"beta": Decimal("sNaN")}, "is not finite"),
    "seed": ({"seed": -1}, "seed = -1 is below 0"),
    "batch": ({"batch": 0}, "batch = 0 is below 1"),
    "batch huge": ({"batch": 10**12}, "batch = 1000000000000 is above 1,000,000"),
    "batch half": ({"batch": 2.5}, "batch = 2.5 is not a whole number"),
    "dtype": ({"dtype": torch.float16}, "dtype = 'float16' is not a choice"),
    "dtype number": ({"dtype": 32}, "dtype = 32 is not a word"),
    "unknown": ({"betta": 0.1}, "there is no argument 'betta'. Did you mean 'beta'"),
    # options
    "name": ({"estimator_options": {"name": "ep"}}, "estimator_options['name']: estimator 'aep' has no such option"),
    "name of a system": (
        {"system_options": {"name": "toy_cons"}},
        "system_options['name']: system 'toy_noncons' has no",
    ),
    "option": ({"system_options": {"Heads": 2}}, "system_options['Heads']: system 'toy_noncons' has no such option"),
    "option type": ({"system_options": {"D": "4"}}, "system_options['D'] = '4' is a str; expected: int"),
    "option None": ({"system_options": {"D": None}}, "system_options['D'] = None; expected: int"),
    "option below 0": ({"system_options": {"drive_std": -1.0}}, "system_options['drive_std'] = -1.0 is below 0"),
    "option beyond float32": (
        {"system_options": {"drive_std": 1e300}},
        "system_options['drive_std'] = 1e+300 is too large for float32",
    ),
    "options too large for memory": ({"system_options": {"D": 2**30, "heads": 1}}, "it does not fit into memory"),
    "options JSON twice": ({"system_options": '{"D": 4, "D": 8}'}, "'D' stands there twice"),
    "params_from None": (
        {"system_options": {"params_from": None}},
        "system_options['params_from']: got None, expected",
    ),
    "params_from list": ({"system_options": {"params_from": ["a"]}}, "system_options['params_from']: got a list"),
    "params_from number": ({"system_options": {"params_from": 3}}, "system_options['params_from']: got an int"),
    "params_from folder": (
        {"system_options": {"params_from": "/tmp"}},
        "system_options['params_from'] = '/tmp' is no training or checkpoint: it is a folder without a checkpoint.pt",
    ),
    "params_from zero byte": ({"system_options": {"params_from": "a\0b"}}, "it holds a zero byte"),
    "params_from nowhere": ({"system_options": {"params_from": Path("no/where")}}, "'no/where' is no training"),
    "option half": ({"system_options": {"D": np.float64(4.5)}}, "system_options['D'] = 4.5 is a float; expected: int"),
    "option bool": ({"system_options": {"D": np.bool_(1)}}, "system_options['D'] = True is a bool; expected: int"),
    "option NaN": ({"system_options": {"drive_std": float("nan")}}, "system_options['drive_std'] = nan is not finite"),
    "option close to 0": (
        {"system_options": {"drive_std": np.float32(1e-40)}},
        "is too small for float32, in which numbers below 1.2e-38 count as 0",
    ),
    "option list": ({"system_options": {"D": [4, 8]}}, "system_options['D'] = [4, 8] is a list; expected: int"),
    "options": ({"system_options": 3}, "system_options: got an int, expected a table of options"),
    "options JSON": ({"system_options": "D=4"}, "got 'D=4', expected a table, as in system_options={NAME: VALUE}"),
    "options JSON list": ({"system_options": "[1]"}, "system_options: got a list, expected a table"),
    "choice": ({"estimator_options": {"nudge": "centered"}}, "Did you mean 'centred'"),
    "choice object": ({"estimator_options": {"nudge": X0}}, "is not a choice"),
    "device": ({"device": "tpu"}, "device = 'tpu' is not known"),
    "label": ({"estimator": "aep clip=batch"}, "is no name; the options of 'aep' go into estimator_options={...}"),
    "swapped": ({"system": "ep"}, "system = 'ep' is an estimator; the system comes first, and then the estimator"),
    "swapped classes": (
        {"system": Ep},
        "system: got Ep, which is an estimator; the system comes first",
    ),
    "a system as the rule": ({"estimator": ToyCons()}, "estimator: got ToyCons, which is a system; the"),
    "device gpu": ({"device": "gpu"}, "device = 'gpu' is not known. Did you mean 'cuda'?"),
    "option beside": ({"clip": "batch"}, "'clip' is an option of 'aep': estimator_options={'clip': ...}"),
    "device index": ({"device": "cpu:99"}, "device = 'cpu:99' is not known; expected: auto, cpu, cuda or cuda:0"),
    "device index word": ({"device": "cpu:foo"}, "device = 'cpu:foo' is not known"),
    "device object": ({"device": torch.device("meta")}, "device = 'meta' is not known"),
    "system": ({"system": int}, "system: got a type, expected a name"),
    "system object": ({"system": object()}, "system: got an object, expected a name"),
    "estimator": ({"estimator": None}, "estimator: got None, expected a name"),
    "system name": ({"system": np.str_("toy_con")}, "system = 'toy_con' is not registered. Did you mean 'toy_cons'"),
}


@pytest.mark.fast
@pytest.mark.parametrize("mistake", BAD)
def test_a_mistake_names_the_argument_and_what_is_expected(mistake: str) -> None:
    arguments, message = BAD[mistake]
    with pytest.raises(gb.UserError) as error:
        measure(**({"batch": None} if "data" in arguments and "batch" not in arguments else {}) | arguments)
    assert message in str(error.value)
    assert "grid[" not in str(error.value)
    assert "Input should" not in str(error.value)


@pytest.mark.fast
@pytest.mark.parametrize(("name", "value"), [("s", 2.0), ("damp", 1.0), ("T1", 20)])
def test_a_coordinate_that_the_system_does_not_use_is_refused_where_it_has_a_value(name: str, value: float) -> None:
    small = {"d": 8, "L": 2}
    with pytest.raises(gb.UserError) as error:
        measure("residual_mlp", "ep", system_options=small, **{name: value})
    told = f"{name} = {value}: nobody uses it here: residual_mlp uses none of them; ep uses T2, beta"
    assert str(error.value) == told
    for blank in (None, float("nan"), pd.NA):
        assert measure("residual_mlp", "ep", system_options=small, **{name: blank}).row[name] is None


@pytest.mark.fast
def test_a_loop_over_rules_may_name_the_coordinates_of_all_of_them() -> None:
    rows = [measure(estimator=rule, T2=5, beta=0.02).row for rule in ("bptt", "tbptt", "ep")]
    assert [(row["T2"], row["beta"]) for row in rows] == [(None, None), (5, None), (5, 0.02)]


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "run": (lambda: gb.run("smoke", devices="cpu"), "run: there is no argument 'devices'. Did you mean 'device'?"),
    "run coordinate": (lambda: gb.run("smoke", T2=3), "run: 'T2' goes into overrides={'T2': ...}"),
    "run without": (lambda: gb.run(), "run: missing: suite"),
    "run positions": (lambda: gb.run("smoke", "out"), "run: 2 given without a name; taken without a name: suite"),
    "run twice": (lambda: gb.run("smoke", suite="aep"), "run: suite is given twice"),
    "run training": (lambda: gb.run("quick"), "but a training of this name does: gradbench.train('quick')"),
    "train suite": (lambda: gb.train("smoke"), "but a suite of this name does: gradbench.run('smoke')"),
    "train rule": (
        lambda: gb.train("ep"),
        "but an estimator of this name does: it stands among the keys of a training",
    ),
    "unknown rule": (lambda: gb.measure("toy_cons", "shine"), "; gradbench.register gives a name to another one"),
    "suite": (lambda: gb.suite(T2=3), "suite: 'T2' is a key of a grid: suite({'T2': ...})"),
    "suite word": (lambda: gb.suite({}, checks=[]), "suite: there is no argument 'checks'. Did you mean 'check'?"),
    "tune": (lambda: gb.tune("toy_cons", "ep", cosine_min=0.9), "tune: the wanted cosine_min is the argument want"),
    "tune without": (lambda: gb.tune("toy_cons"), "tune: missing: estimator"),
    "train": (lambda: gb.train("quick", lr=0.1), "train: 'lr' goes into overrides={'optimiser': {'lr': ...}}"),
    "train key": (lambda: gb.train("quick", steps=1), "train: 'steps' goes into overrides={'steps': ...}"),
    "compare": (lambda: gb.compare("a", "b", metric="cosine"), "there is no argument 'metric'. Did you mean 'metrics'"),
    "system": (lambda: gb.system(steps=1), "system: there is no argument 'steps'. Did you mean 'step'?"),
    "system position": (lambda: gb.system(1), "system: 1 given without a name; taken without a name: none"),
    "estimator": (lambda: gb.estimator(sources="x"), "there is no argument 'sources'. Did you mean 'source'?"),
    "conform": (lambda: gb.conform("ep", batches=3), "there is no argument 'batches'. Did you mean 'batch'?"),
    "register": (lambda: gb.register(1, 2, 3), "register: 3 given without a name; taken without a name: item, name"),
    "explain": (lambda: gb.explain("toy_cons"), "explain: missing: estimator"),
    "measure": (lambda: gb.measure("toy_cons"), "measure: missing: estimator"),
    "measure, and a coordinate": (lambda: gb.measure("toy_cons", T2=3), "measure: missing: estimator"),
    "system without": (lambda: gb.system(), "data, name, state or state_at, one of step, force, energy"),
    "method": (lambda: measure().explain(worst=1), "explain: there is no argument 'worst': it takes none"),
    "method position": (lambda: measure().explain(1), "explain: 1 given without a name; taken without a name: none"),
    "systems": (lambda: gb.systems("toy"), "systems: got 'toy', and takes no argument: it lists the names"),
    "estimators": (lambda: gb.estimators(kind="a"), "estimators: got kind, and takes no argument"),
    "short": (lambda: measure(T3=2), "measure: there is no argument 'T3'. Did you mean 'T1' or 'T2'?"),
}


@pytest.mark.fast
@pytest.mark.parametrize("call", CALLS)
def test_an_argument_that_a_function_does_not_have_is_named(call: str) -> None:
    made, message = CALLS[call]
    with pytest.raises(gb.UserError) as error:
        made()
    assert message in str(error.value)


@pytest.mark.fast
@pytest.mark.parametrize("name", sorted(set(gb.__all__) - {"Estimate", "UserError", "systems", "estimators"}))
def test_every_public_function_tells_an_argument_that_it_does_not_have(name: str) -> None:
    cell = {"system": "toy_cons", "estimator": "ep"} if name in ("measure", "explain") else {}
    with pytest.raises(gb.UserError, match="there is no argument 'no_such_word'"):
        getattr(gb, name)(**cell, no_such_word=1)


LABELS: dict[str, tuple[Any, str | None]] = {
    "int64": (torch.tensor([0, 3, 9]), None),
    "uint8": (torch.tensor([0, 3, 9], dtype=torch.uint8), None),
    "whole floats": ([0.0, 3.0, 9.0], None),
    "numpy": (np.array([0, 3, 9], np.int32), None),
    "pandas": (pd.Series([0, 3, 9]), None),
    "10 of 10": ([0, 3, 10], "data['label']: got 10, expected whole numbers from 0 to 9"),
    "negative": ([0, 3, -1], "data['label']: got -1, expected whole numbers from 0 to 9"),
    "half": ([0, 3, 1.5], "data['label']: got 1.5, expected whole numbers"),
    "bool": ([True, False, True], "data['label']: got true and false"),
    "NaN": ([0, 3, float("nan")], "data['label']: got NaN"),
    "one-hot": (torch.eye(10, dtype=torch.int64)[:3], "data['label']: got shape (3, 10), expected (3,)"),
    "words": (["a", "b", "c"], "data['label']: got a list of <U1"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_whole_numbers_of_a_class(kind: str) -> None:
    label, message = LABELS[kind]
    x = torch.rand((3, 784), generator=torch.Generator().manual_seed(0))

    def call(label: Any) -> Any:
        options = {"d": 8, "L": 2}
        return gb.measure("residual_mlp", "ep", T2=2, system_options=options, data={"x": x, "label": label})

    if message is None:
        assert fingerprint(call(label)) == fingerprint(call(torch.tensor([0, 3, 9])))
        return
    with pytest.raises(gb.UserError) as error:
        call(label)
    assert message in str(error.value)


def test_a_mask_of_true_and_false_is_no_mask() -> None:
    data = {"x": torch.rand(2, 1, 28, 28), "mask": torch.ones(2, 1, 28, 28, dtype=torch.bool)}
    with pytest.raises(gb.UserError, match=r"data\['mask'\]: got true and false \(bool\), expected numbers"):
        gb.measure("cet_real", "aep", T1=5, T2=2, data=data)


SCALARS: dict[str, dict[str, Any]] = {
    "numpy": {"T1": np.int64(20), "T2": np.uint8(5), "damp": np.float64(3), "batch": np.int32(2), "seed": np.int16(0)},
    "0-d arrays": {"T1": np.array(20), "damp": np.array(3.0), "batch": np.array(2.0)},
    "0-d tensors": {"T1": torch.tensor(20), "damp": torch.tensor(3.0, requires_grad=True), "batch": torch.tensor(2)},
    "floats": {"T1": 20.0, "T2": 5.0, "batch": 2.0, "seed": 0.0},
    "ints": {"damp": 3, "s": 1},
    "fractions": {"T1": Fraction(20), "damp": Fraction(6, 2), "batch": Decimal("2"), "s": Decimal("1.0")},
    "dtype of torch": {"dtype": torch.float32},
    "dtype of numpy": {"dtype": np.dtype("float32")},
    "class of numpy": {"dtype": np.float32},
    "word of an enum": {"dtype": Words.dtype, "system": Words.system, "device": Words.device},
    "word of numpy": {"dtype": np.str_("float32"), "system": np.str_("toy_noncons")},
    "device": {"device": torch.device("cpu")},
    "device with a number": {"device": torch.device("cpu", 0)},
    "options of numpy": {"system_options": {n: np.asarray(v)[()] for n, v in SMALL.items()}},
    "options of torch": {"system_options": {n: torch.tensor(v) for n, v in SMALL.items()}},
    "options as JSON": {"system_options": json.dumps(SMALL)},
    "options in a Series": {"system_options": pd.Series(SMALL)},  # all as float64
    "nothing": {"system_options": SMALL, "estimator_options": None, "params": {}, "data": None, "beta": None},
}


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_of_every_kind_are_taken_as_the_number_that_they_are(kind: str) -> None:
    plain = measure(estimator_options={}, s=1.0)
    assert fingerprint(measure(**SCALARS[kind])) == fingerprint(plain)


def test_a_row_of_a_run_can_be_measured_again_as_it_stands(write_suite: Any, cores: Callable[[int], None]) -> None:
    cores(2)
    more = (
        '\n[[grid]]\nsystem = { name = "residual_mlp", d_in = 784, d = 8, L = 2 }\nestimator = ["ep", "bptt"]\nT2 = 3'
    )
    suite = write_suite(more + '\nbatch = 2\ndtype = "float64"\n')
    cells = gb.run(suite, out=suite.parent / "out", device="cpu").cells
    for row in (*cells.iloc[:6].itertuples(), *cells.iloc[-2:].itertuples()):
        options = {f"{kind}_options": getattr(row, f"{kind}_options") for kind in ("system", "estimator")}
        again = gb.measure(row.system, row.estimator, **options, **{name: getattr(row, name) for name in COORDINATES})
        told = {n: v for n, v in again.row.items() if n not in (*TIME, "problem")}
        # a run takes all T1 as rows of one product, and a product of another height may be summed in another order
        digits = 1e-4 if row.dtype == "float32" else 1e-11
        assert not [n for n, v in told.items() if not _same(getattr(row, n), v, digits)]


def _same(a: Any, b: Any, digits: float) -> bool:
    if pd.isna(a) and pd.isna(b):
        return True
    numbers = isinstance(a, float) and isinstance(b, float)
    return bool(np.isclose(a, b, rtol=digits, atol=digits**2)) if numbers else a == b


def test_a_suite_is_a_path_or_a_name(write_suite: Any) -> None:
    suite = write_suite()
    assert isinstance(suite, Path)
    first = gb.run(suite, out=suite.parent / "out", device="cpu")
    assert gb.run(str(suite), out=str(suite.parent / "out"), device="cpu").id == first.id
    with pytest.raises(gb.UserError, match=r"tinny.toml' does not exist. Did you mean"):
        gb.run(suite.with_name("tinny.toml"))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("memory", 0.5), ("engine", None), ("engine", ["eager"]), ("device", 0), ("overrides", {"T1": np.int64(0)})],
)
def test_an_argument_of_run_that_is_none_is_told(write_suite: Any, argument: str, value: object) -> None:
    with pytest.raises(gb.UserError, match=r"memory = |engine = |device = |overrides\['T1'\]: got .*: 0 is below 1"):
        gb.run(write_suite(), **({"device": "cpu"} | {argument: value}))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (3, "overrides: got an int, expected a table of values by key"),
        ("T1=3", "overrides: got a str, expected a table"),
        ({3: 1}, "overrides: got the key 3, expected a name"),
        (
            {"T2": "a"},
            "overrides['T2']: got 'a', expected a whole number of 1 or more, or a list or a range of these: ",
        ),
        ({"beta": [0.1, -1]}, "overrides['beta']: got [0.1, -1], expected a number above 0"),
        ({"T2": np.array([[1, 2]])}, "an array of shape (1, 2) is no list of values"),
        ({"T1": 10**5000}, "overrides['T1']: got a number that is too long to be told"),
        ({"betta": 1}, "overrides['betta']: unknown key. Did you mean 'beta'?"),
        ({"dtype": "float23"}, "expected 'float32' or 'float64', or a list"),
        ({"estimator": "bppt"}, "overrides['estimator'] = 'bppt' is not registered. Did you mean 'bptt'?"),
        ({"estimator": ["ep", "bppt"]}, "overrides['estimator'][1] = 'bppt' is not registered"),
        ({"system": {"name": "toy_cons", "K": 3}}, "overrides['system'].K: system 'toy_cons' has no such option"),
        (
            {"D": 16},
            "overrides['D']: unknown key; it is an option of toy_cons: overrides={'system': {'name': 'toy_cons',",
        ),
        ({"grid.T1": 5}, "overrides['grid.T1']: unknown key; write overrides['T1'], which replaces T1 in every grid"),
        ({"params_from": "nowhere"}, "overrides['params_from'] = 'nowhere' is no training"),
    ],
)
def test_overrides_that_are_wrong_are_told_as_the_argument_that_they_are(overrides: object, told: str) -> None:
    with pytest.raises(gb.UserError) as error:
        gb.run("smoke", overrides=overrides)  # type: ignore[arg-type]
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert "grid[" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: tune("toy_cons", "ep", 0.9, 3), "overrides: got an int"),  # type: ignore[arg-type]
        (lambda: tune("toy_cons", "ep", 0.9, {"T1": [0]}), "overrides['T1']: got [0], expected a whole number"),
        (
            lambda: tune("toy_cons", "ep", 0.9, {"estimator": "aep"}),
            "overrides['estimator']: the estimator of a search",
        ),
        (lambda: tune("toy_conss", "ep", 0.9), "system = 'toy_conss' is not registered. Did you mean 'toy_cons'?"),
        (
            lambda: tune("toy_cons", "aep clip=bach", 0.9),
            "estimator.clip = 'bach' is not a choice. Did you mean 'batch'?",
        ),
        (lambda: train("quick", overrides=3), "overrides: got an int"),  # type: ignore[arg-type]
        (lambda: train("quick", overrides={"stepss": 3}), "overrides['stepss']: unknown key. Did you mean 'steps'?"),
        (lambda: train("quick", overrides={"T1": "x"}), "overrides['T1']: 'x' is not a number"),
        (lambda: train("quick", overrides={"estimator": "epp"}), "overrides['estimator'] = 'epp' is not registered"),
        (lambda: train("quick", overrides={"batch": 10**5}), "quick.toml with overrides['batch']: "),
    ],
)
def test_overrides_of_a_search_and_of_a_training_are_told_alike(call: Any, told: str) -> None:
    with pytest.raises(gb.UserError) as error:
        call()
    assert told in str(error.value)


@pytest.mark.parametrize(
    "values", [np.array([2, 4]), torch.tensor([2, 4]), pd.Series([2, 4]), (2, 4), range(2, 5, 2), np.array([2.0, 4.0])]
)
def test_values_of_overrides_are_those_of_the_list(write_suite: Any, values: Any) -> None:
    loaded, planned = prepare(write_suite(), {"T2": values, "beta": np.float32(0.5)})
    assert loaded.grid[0].T2 == (2, 4)
    assert planned.key == prepare(write_suite(), {"T2": [2, 4], "beta": 0.5})[1].key


RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "out None": ({"out": None}, "out: got None, expected the path of a folder"),
    "out number": ({"out": 3}, "out: got an int, expected the path of a folder"),
    "out zero byte": ({"out": "a\0b"}, "out = 'a\\x00b' cannot be a path"),
    "memory of many digits": ({"memory": "9" * 400 + "GiB"}, "memory: a number of 400 digits"),
    "watch": ({"watch": 3}, "watch: got an int, expected a function"),
    "certify": ({"certify": "no"}, "certify: got 'no', expected True or False"),
    "fresh": ({"fresh": 1}, "fresh: got 1, expected True or False"),
    "None": ({"overrides": {"T1": None}}, "None is no value: leave it out to take the default"),
    "too large": ({"overrides": {"damp": 1e300}}, "overrides['damp'] = 1e+300 is too large for float32"),
    "too many steps": ({"overrides": {"T1": 10**9}}, "1000000000 is above 10,000,000"),
    "memory": ({"overrides": {"system": {"name": "toy_cons", "D": 2**30}}}, "it does not fit into memory"),
}


@pytest.mark.parametrize("mistake", RUNS)
def test_a_mistake_in_run_is_told_before_there_is_a_folder(write_suite: Any, mistake: str) -> None:
    suite = write_suite()
    arguments, message = RUNS[mistake]
    with pytest.raises(gb.UserError) as error:
        gb.run(suite, **{"device": "cpu", "out": suite.parent / "out"} | arguments)
    assert message in str(error.value)
    assert not (suite.parent / "out").exists()


TUNES: dict[str, tuple[tuple[Any, ...], str]] = {
    "name": (
        ("toy_noncons name=toy_cons", "ep", 0.9),
        "there is no option 'name'; the name comes first: 'toy_noncons'",
    ),
    "text": (("toy_noncons", "ep", "0.9"), "want: '0.9' is not a number"),
    "None": (("toy_noncons", "ep", None), "want: None is not a number; expected a number between 0 and 1"),
    "one": (("toy_noncons", "ep", 1), "want = 1 is not between 0 and 1"),
    "number": ((3, "ep", 0.9), "system: got an int, expected a name"),
    "list": (
        ("toy_noncons", "ep", 0.9, {"damp": [0.0, 3.0]}),
        "overrides['damp']: got 0.0, 3.0; a search asks of one value",
    ),
    "range": (
        ("toy_noncons", "ep", 0.9, {"s": {"linspace": [0, 1, 9]}}),
        "overrides['s']: got 0.0, 0.125, 0.25, ...; a",
    ),
    "list of eps": (("toy_noncons", "ep", 0.9, {"eps": [0.1, 0.2]}), "lists are those of T1, T2, beta, seed"),
    "list of an option": (
        ("toy_noncons", "aep clip=none,batch", 0.9),
        "estimator.clip: got none, batch; a search asks of",
    ),
    "list of trainings": (
        ("toy_noncons", "ep", 0.9, {"params_from": ["a", "b"]}),
        "overrides['params_from']: got a, b;",
    ),
    "option": (("toy_noncons", "aep", 0.9, {"clip": "batch"}), "overrides['clip']: it is an option of aep, and stands"),
    "swapped": (("ep", "toy_cons", 0.9), "system = 'ep': 'ep' is an estimator; the system comes first, and then the"),
    "swapped rule": (
        ("toy_cons", "toy_cons D=4", 0.9),
        "estimator = 'toy_cons D=4': 'toy_cons' is a system; the system",
    ),
    "swapped classes": (
        (Ep, "toy_cons", 0.9),
        "system: got Ep, which is an estimator; the system comes",
    ),
    "suite": (("smoke", "ep", 0.9), "system = 'smoke': 'smoke' is a suite; a search takes a system and an estimator"),
    "empty": (("toy_noncons", "", 0.9), "estimator: got '', expected a name"),
    "watch": (("toy_noncons", "ep", 0.9, None, "cpu", 3), "watch: got an int"),
}


@pytest.mark.parametrize("mistake", TUNES)
def test_a_mistake_in_tune_is_told(mistake: str) -> None:
    arguments, message = TUNES[mistake]
    with pytest.raises(gb.UserError) as error:
        tune(*arguments)
    assert message in str(error.value)


def test_what_denormal_numbers_count_as_does_not_change_a_message() -> None:
    with PROCESSES["denormals flushed"](), pytest.raises(gb.UserError, match=r"and below 2.2e-308 is too small"):
        measure(beta=1e-310)


def test_a_state_that_is_zero_from_the_start_is_told_as_such() -> None:
    m = measure(batch=None, data={"x0": torch.zeros(2, 2, 4)}, system_options=SMALL | {"drive_std": 0.0})
    assert (m.status, "nan" in m.reason) == ("collapsed", False), m.reason


# forces that are none


def _faulty(fault: str) -> Any:
    @dataclass(frozen=True)
    class Faulty(ToyNoncons):  # type: ignore[misc]
        """A toy whose force is wrong."""

        name: ClassVar[str] = "faulty"

        def force(self, theta: Any, x: Any, context: Any, s: Any, knobs: Any) -> Any:
            right = super().force(theta, x, context, s, knobs)
            return {
                "shape": lambda: right[..., :1],
                "more rows": lambda: right[None],
                "dtype": right.double,
                "half": right.half,
                "NaN": lambda: right * torch.nan,
                "inf": lambda: right / 0.0,
                "no tensor": lambda: (right,),
            }[fault]()

    return Faulty


FAULTS = {
    "shape": "faulty: F(s_0) has shape (2, 1), expected (2, 8)",
    "more rows": "faulty: F(s_0) has shape (1, 2, 8), expected (2, 8)",
    "dtype": "faulty: F(s_0) is float64, expected float32",
    "half": "faulty: F(s_0) is float16, expected float32",
    "NaN": "faulty: F(s_0) holds NaN, expected finite numbers",
    "inf": "faulty: F(s_0) holds inf, expected finite numbers",
    "no tensor": "faulty: F(s_0) is a tuple, expected a tensor",
}


@pytest.fixture
def register() -> Iterator[Callable[[Any], object]]:
    """Registers a system for one test."""
    with registry.scope():
        yield registry.register


@pytest.mark.fast
@pytest.mark.parametrize("fault", FAULTS)
def test_a_force_that_is_none_is_a_mistake_in_measure(fault: str, register: Callable[[type], None]) -> None:
    register(_faulty(fault))
    with pytest.raises(gb.UserError) as error:
        measure("faulty", system_options=SMALL)
    assert str(error.value) == FAULTS[fault]


@pytest.mark.parametrize("engine", ["eager", "batched"])
@pytest.mark.parametrize("fault", ["shape", "NaN"])
def test_a_force_that_is_none_is_the_status_of_its_cells_in_a_run(
    fault: str, engine: str, register: Callable[[type], None], write_suite: Any
) -> None:
    register(_faulty(fault))
    more = '\n[[grid]]\nsystem = { name = "faulty", N = 2, D = 4, heads = 2, out = 2 }\nestimator = ["bptt", "ep"]\n'
    suite = write_suite(more + "T1 = 5\nT2 = 2\nbatch = 2\nseed = [0, 1]\n")
    cells = gb.run(suite, out=suite.parent / "out", device="cpu", engine=engine).cells
    wrong = cells[cells["system"] == "faulty"]
    assert set(wrong["status"]) == {"error"}
    assert set(wrong["reason"]) == {FAULTS[fault]}
    assert not set(cells[cells["system"] != "faulty"]["status"]) & {"error", "oom"}


# what comes back


def test_estimate_and_reference_never_share_memory() -> None:
    for estimator in ("bptt", "tbptt", "ep", "adjoint", "control"):
        m = measure("toy_noncons", estimator)
        before = {n: g.clone() for n, g in m.reference.items()}
        for g in m.estimate.values():
            g.mul_(2)
        assert all(torch.equal(before[n], g) for n, g in m.reference.items())


@pytest.mark.fast
def test_measurements_are_compared_by_identity() -> None:
    m, other = measure(), measure()
    assert (m == m, m == other, m != other, len({m, other})) == (True, False, True, 2)


def test_a_measurement_shows_its_evidence() -> None:
    m = measure()
    told = repr(m)
    assert "\n" not in told
    assert told.startswith("toy_noncons D=4 N=2 drive_std=1.0 heads=2 out=2 aep: status ")
    for name in ("cosine", "cosine_min", "worst", "rel_error", "residual", "cause"):
        assert f"  {name} " in told
    assert "tensor" not in told
    html = m._repr_html_()
    assert html.count("<tr>") == 10
    assert "<td>" + str(m.status) in html


def test_text_of_a_measurement_is_escaped_in_html() -> None:
    from dataclasses import replace

    m = measure()
    html = replace(m, reason="|s| < <b>&", row=m.row | {"worst": "<i>"})._repr_html_()
    assert "|s| &lt; &lt;b&gt;&amp;" in html
    assert "<i>" not in html


@pytest.mark.fast
def test_words_print_as_words() -> None:
    m = measure()
    assert f"{m.status}" == str(m.status) == m.row["status"]
    assert repr({"status": m.status}) == repr({"status": m.row["status"]})
    assert "<" not in repr({k: v for k, v in m.row.items() if k in ("status", "cause")})
    assert type(m.row["status"]) is str

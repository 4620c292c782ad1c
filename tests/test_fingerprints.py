"""The digest of content: equal wherever the content lies, and another one for every change that may change a number."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradbench.data.fingerprints import fingerprint, undigested

AUTHOR = '''
import functools
import math
from dataclasses import dataclass
from enum import Enum

import torch

RATE = 0.5
TABLE = {"a": [1, 2.0], "b": {"deep", "set"}}
UNUSED = 1


class Kind(Enum):
    FIRST = 1
    SECOND = "two"


@dataclass(frozen=True)
class Options:
    width: int = 3
    kind: Kind = Kind.FIRST


class Base:
    floor = 1e-3

    @property
    def height(self):
        return 2


class Layer(Base):
    __slots__ = ("size",)

    def __init__(self, size):
        self.size = size
        self.bias = 0.25

    @staticmethod
    def up(x):
        return x + 1

    @classmethod
    def down(cls, x):
        return x - 1

    @functools.cached_property
    def wide(self):
        return self.size * 7

    def __call__(self, x):
        return self.up(x) * self.size + self.wide


def helper(x):
    """What helper does."""
    return x * RATE


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


def scaled(factor):
    def wrap(function):
        @functools.wraps(function)
        def wrapper(*args):
            return factor * function(*args)
        return wrapper
    return wrap


@functools.cache
def cached(n):
    return n + 11


@scaled(3.0)
def decorated(x):
    return x + 13


LAYER = Layer(4)
OPTIONS = Options()


def make(scale):
    shift = [1, 2]

    def step(net, x, z, *, gain=1.5, low=(0, 1)):
        """What step does."""
        from math import exp
        rows = [helper(v) for v in (x, z)]
        try:
            total = sum(rows) + (lambda v: v * 17)(TABLE["a"][0])
        except ValueError:
            total = 19
        if total in {"p", "q", "r"}:
            return math.sin(total)
        total = torch.tanh(total) * scale + gain + shift[0] + LAYER(x)
        return total + even(4) + cached(2) + decorated(1) + OPTIONS.width

    return step


step = make(2.0)
'''


def step_of(text: str = AUTHOR, name: str = "author", file: str = "<notebook>") -> Callable[..., Any]:
    """The function `step` that a source defines, as a cell of a notebook does it."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(text, file, "exec", dont_inherit=True), vars(module))
    finally:
        del sys.modules[name]
    return module.step


def changed(before: str, after: str) -> Callable[..., Any]:
    assert before in AUTHOR
    return step_of(AUTHOR.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("RATE = 0.5", "RATE = 0.25"),  # a global of a helper
        ("RATE = 0.5", "RATE = 1 / 3"),
        ("[1, 2.0]", "[1, 2]"),  # 2.0 and 2
        ("[1, 2.0]", "[True, 2.0]"),
        ("[1, 2.0]", "(1, 2.0)"),
        ('{"a": [1, 2.0], "b": {"deep", "set"}}', '{"b": {"deep", "set"}, "a": [1, 2.0]}'),
        ('"deep"', '"flat"'),
        ('SECOND = "two"', "SECOND = 2"),
        ("width: int = 3", "width: int = 4"),
        ("kind: Kind = Kind.FIRST", "kind: Kind = Kind.SECOND"),
        ("floor = 1e-3", "floor = 1e-4"),  # of a base
        ("return 2\n", "return 3\n"),  # a property
        ("class Base:", "class Base(dict):"),
        ("self.bias = 0.25", "self.bias = -0.25"),
        ("return x + 1\n", "return x + 2\n"),  # static
        ("return x - 1\n", "return x - 2\n"),  # of a class
        ("self.size * 7", "self.size * 8"),  # cached property
        ("return x * RATE", "return RATE * x"),
        ("even(n - 1)", "even(n - 2)"),  # two functions that call each other
        ("factor * function", "factor + function"),  # a decorator
        ("return n + 11", "return n + 12"),  # behind functools.cache
        ("@scaled(3.0)", "@scaled(4.0)"),  # the closure of a decorator
        ("return x + 13", "return x + 14"),  # behind a decorator
        ("Layer(4)", "Layer(5)"),  # a slot
        ("Options()", "Options(7)"),
        ("shift = [1, 2]", "shift = [1, 3]"),  # the closure
        ("gain=1.5", "gain=1.25"),  # a default
        ("low=(0, 1)", "low=(0, 1.0)"),
        ("gain=1.5, low=(0, 1)", "low=1.5, gain=(0, 1)"),
        ("*, gain", "gain"),
        ("import exp", "import log"),
        ("(x, z)]", "(z, x)]"),
        ("v * 17", "v * 18"),  # nested code
        ("except ValueError", "except TypeError"),
        ("total = 19", "total = 20"),
        ('"r"}', '"s"}'),  # a set among the constants
        ("math.sin", "math.cos"),
        ("torch.tanh", "torch.sin"),
        ("make(2.0)", "make(-2.0)"),
        ("make(2.0)", "make(torch.tensor(2.0))"),
        ("0, 1)):", "-0.0, 1)):"),
    ],
)
def test_every_change_that_may_change_a_number_is_another_digest(before: str, after: str) -> None:
    assert undigested(changed(before, after)) is None
    assert fingerprint(changed(before, after)) != fingerprint(step_of())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("UNUSED = 1", "UNUSED = 2"),  # nothing reaches it
        ('"""What helper does."""', '"""What it does, told better."""'),
        ('"""What step does."""', '"""Longer."""'),
        ("def even", "\n\n\n# a comment\ndef even"),
        ("RATE = 0.5", "RATE = 2**-1"),
        ('{"p", "q", "r"}', '{"r", "q", "p"}'),
    ],
)
def test_what_changes_no_number_changes_no_digest(before: str, after: str) -> None:
    assert fingerprint(changed(before, after)) == fingerprint(step_of())


def test_equal_code_elsewhere_under_another_name_and_after_use_has_an_equal_digest() -> None:
    step = step_of()
    first = fingerprint(step)
    assert first is not None
    assert len(first) == 16
    assert int(first, 16) >= 0
    for _ in range(50):  # the interpreter specialises what is called often; cached values are noted in objects
        step(None, torch.tensor(1.0), torch.tensor(2.0))
    assert fingerprint(step) == first
    assert fingerprint(step_of(name="elsewhere", file="/another/folder/file.py")) == first
    renamed = step_of(AUTHOR.replace("def step(", "def other(").replace("return step", "return other"))
    assert fingerprint(renamed) == first
    step.__globals__["RATE"] = 0.75
    assert fingerprint(step) != first
    step.__globals__["RATE"] = 0.5
    assert fingerprint(step) == first


def test_a_digest_depends_on_the_order_and_the_number_of_its_items() -> None:
    items = [(), ((),), (1, 2), (2, 1), ((1, 2),), ([1, 2],), ("12",), ("1", "2"), (b"12",), (None,), ({1: 2},)]
    assert len({fingerprint(*item) for item in items}) == len(items)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import test_fingerprints as here
print(here.told())
"""


def told() -> str:
    """Digests of what memory and the order of sets may disturb."""
    return f"{fingerprint(step_of())} {fingerprint({'b', 'a', ('c', 1)}, net(), Fixed)} {fingerprint(Net.forward)}"


def test_a_digest_is_the_same_in_another_process() -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert there == told()
    assert "None" not in there


def test_a_digest_needs_neither_torch_nor_numpy() -> None:
    code = "import sys; from gradbench.data.fingerprints import fingerprint as f; f(f, 1)"
    code += "; print({'torch', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# helper modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Write the package `mypack`, and load its function `step` anew."""

    def load(folder: str = ".", **edits: str) -> Any:
        texts = {
            "__init__": "from mypack import helper",
            "rule": "import mypack.helper\nfrom mypack import helper as h\nfrom mypack.part import inner\n"
            "def step(x):\n    from mypack.late import late\n    from .late import more\n"
            "    return mypack.helper.FACTOR * x + getattr(h, 'NAMED') + inner(x) + late + more",
            "helper": "import mypack\nFACTOR = 2.0\nNAMED = 3.0\nOTHER = 4.0\nFILE = open('/dev/null')\n",
            "part": "from mypack.helper import FACTOR\nDEEP = 5.0\ndef inner(x):\n    return x + DEEP",
            "late": "late = 6.0\nmore = 7.0",
        } | edits
        root = tmp_path / folder
        (root / "mypack").mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (root / "mypack" / f"{name}.py").write_text(text)
        for name in [m for m in sys.modules if m.partition(".")[0] == "mypack"]:
            del sys.modules[name]
        monkeypatch.syspath_prepend(str(root))
        importlib.invalidate_caches()
        return importlib.import_module("mypack.rule").step

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield load
    for name in [m for m in sys.modules if m.partition(".")[0] == "mypack"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "before", "after"),
    [
        ("helper", "FACTOR = 2.0", "FACTOR = 5.0"),
        ("helper", "NAMED = 3.0", "NAMED = 5.0"),
        ("part", "DEEP = 5.0", "DEEP = 6.0"),
        ("part", "x + DEEP", "x - DEEP"),
        ("late", "late = 6.0", "late = 7.0"),
        ("late", "more = 7.0", "more = 8.0"),
    ],
)
def test_a_helper_in_another_module_of_the_author_is_content(
    package: Any, module: str, before: str, after: str
) -> None:
    first = fingerprint(package())
    text = Path(sys.modules[f"mypack.{module}"].__file__ or "").read_text() if module != "late" else None
    text = text or "late = 6.0\nmore = 7.0"
    assert before in text
    assert first is not None
    assert fingerprint(package(**{module: text.replace(before, after)})) != first


def test_a_module_counts_by_what_is_named_of_it_and_not_by_its_place(package: Any) -> None:
    first = fingerprint(package())
    assert fingerprint(package("another/folder")) == first  # and an open file that nobody names does not matter
    text = "import mypack\nFACTOR = 2.0\nNAMED = 3.0\nOTHER = 400\n"
    assert fingerprint(package(helper=text)) == first


def test_an_installed_package_is_a_name_unless_it_is_asked_for(package: Any) -> None:
    folder = "lib/site-packages"
    edited = {"part": "DEEP = 9.0\ndef inner(x):\n    return x * DEEP"}
    assert fingerprint(package(folder)) == fingerprint(package(folder, **edited)) != fingerprint(package())
    inside = fingerprint(package(folder), within=["mypack"])
    assert inside == fingerprint(package())
    assert inside != fingerprint(package(folder, **edited), within=["mypack"])


def test_another_version_of_an_installed_package_is_other_content(package: Any) -> None:
    from gradbench.data import origins

    origins._version.cache_clear()
    first = fingerprint(package("lib/site-packages"))
    origins._version.cache_clear()
    text = "__version__ = '2'\nfrom mypack import helper"
    assert fingerprint(package("lib/site-packages", __init__=text)) != first
    origins._version.cache_clear()


# torch


class Net(nn.Module):
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.inner.weight
        self.norm = nn.LayerNorm(2)
        self.gain = 2.0
        self.register_buffer("table", torch.eye(2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(self.inner(z)) + self.tied(z) @ self.table) * self.gain


class Fixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2 * grad


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def _nudge(values: torch.Tensor) -> None:
    with torch.no_grad():
        values[..., 0] += 1e-6


def hooked(made: Net) -> None:
    made.inner.register_forward_hook(lambda module, given, out: out * 2)


CHANGES: list[Callable[[Net], object]] = [
    lambda n: _nudge(n.inner.weight),
    lambda n: _nudge(n.table),
    lambda n: n.eval(),
    lambda n: n.norm.eval(),
    lambda n: n.double(),
    lambda n: setattr(n, "gain", 3.0),
    lambda n: setattr(n, "inner", nn.Identity()),
    lambda n: setattr(n.norm, "eps", 1e-6),
    lambda n: n.inner.weight.requires_grad_(False),
    lambda n: setattr(n.tied, "weight", nn.Parameter(n.inner.weight.detach().clone())),
    lambda n: setattr(n, "extra", None),
    hooked,
    lambda n: nn.utils.parametrizations.spectral_norm(n.inner),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_module_is_another_digest(change: Callable[[Net], object]) -> None:
    made = net()
    first = fingerprint(made)
    change(made)
    assert undigested(made) is None
    assert fingerprint(made) not in (first, None)


def test_a_copy_of_a_module_a_compiled_one_and_one_that_was_used_have_an_equal_digest() -> None:
    made = net()
    first = fingerprint(made)
    out = made(torch.zeros(1, 2))
    out.sum().backward()  # gradients are no content
    compiled = copy.deepcopy(made)
    compiled.compile()
    for other in (made, copy.deepcopy(made), torch.compile(made, backend="eager"), compiled):
        assert fingerprint(other) == first
    step = step_of()
    assert fingerprint(torch.compile(step, backend="eager")) == fingerprint(step)
    one, two = net(), net()
    hooked(one)
    two.norm.register_forward_hook(print).remove()  # hooks are counted over the whole process
    hooked(two)
    assert fingerprint(one) == fingerprint(two)


def test_a_custom_derivative_is_content_and_the_count_of_such_classes_is_not() -> None:
    def make(factor: int) -> type:
        class Other(torch.autograd.Function):
            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
                return factor * grad

        return Other

    assert fingerprint(make(2)) == fingerprint(make(2)) != fingerprint(make(3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2), -torch.zeros(2)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
        (torch.tensor(True), torch.tensor(False)),
        (torch.eye(2).to_sparse(), torch.ones(2, 2).to_sparse()),
        (torch.zeros(2), np.zeros(2, np.float32)),
        (np.arange(6).reshape(2, 3), np.arange(6).reshape(3, 2)),
        (np.float32(1), np.float64(1)),
        (np.array(["a", None], dtype=object), np.array(["b", None], dtype=object)),
        (torch.float32, torch.float64),
        (torch.device("cpu"), torch.device("cuda")),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, key=abs), functools.partial(max, key=len)),
        (Path("a"), Path("b")),
        (range(3), range(4)),
        (torch.zeros(2).add, torch.ones(2).add),
        (torch.tanh, torch.sin),
        (np.tanh, np.sin),
        (torch.ops.aten.add, torch.ops.aten.mul),
        (nn.functional.gelu, nn.functional.relu),
        (torch.func.grad(torch.sum), torch.func.grad(torch.mean)),
        (torch.no_grad()(lambda: 1), torch.no_grad()(lambda: 2)),
    ],
)
def test_other_values_are_other_content(one: object, other: object) -> None:
    assert None not in (fingerprint(one), fingerprint(other))
    assert fingerprint(one) != fingerprint(other)


def test_equal_tensors_are_equal_however_they_lie_in_memory() -> None:
    wide = torch.arange(12.0).reshape(3, 4)
    assert fingerprint(wide.T) == fingerprint(wide.T.contiguous()) == fingerprint(wide.t().clone())
    assert fingerprint(wide[:, 1]) == fingerprint(wide[:, 1].clone())
    assert fingerprint(np.arange(4)[::2]) == fingerprint(np.array([0, 2]))
    shared = torch.zeros(2)
    assert fingerprint(shared, shared) != fingerprint(shared, shared.clone())  # one that moves both, or one


def test_what_refers_to_itself_is_digested() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    other: list[object] = [1]
    other.append(other)
    assert fingerprint(loop) == fingerprint(other) is not None
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert fingerprint(deep) is not None
    space = types.SimpleNamespace(a=1)
    space.me = (space, {space.a})
    assert fingerprint(space) is not None


def test_what_talks_waits_or_is_loaded_late_is_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    import logging, os, sys, threading
    from sys import stderr
    log, lock, environ = logging.getLogger("mine"), threading.Lock(), os.environ
    def step():
        import wave
        with lock:
            log.info(environ)
            print(wave, file=stderr)
    """
    space: dict[str, Any] = {}
    exec(textwrap.dedent(text), space)
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    first = fingerprint(space["step"])
    assert undigested(space["step"]) is None
    assert "wave" not in sys.modules
    importlib.import_module("wave")
    monkeypatch.setenv("ANYTHING", "1")
    assert fingerprint(space["step"]) == first


# what no digest sees


def closed_over(value: object) -> Callable[[], object]:
    def step() -> object:
        return thing

    thing = value
    return step


def _numbers() -> Iterator[int]:
    yield 1


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


def test_what_no_digest_sees_is_named_with_its_place(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        space: dict[str, Any] = {"log": file}
        exec(textwrap.dedent("def helper(): return log\ndef step(): return helper()"), space)
        told = {
            "closure variable 'thing' of step: a TextIOWrapper": closed_over(file),
            "closure variable 'thing' of step['a'][1]: a generator": closed_over({"a": [1, _numbers()]}),
            "attribute 'value' of a Holder: a TextIOWrapper": closed_over(Holder(file)),
            "global 'log' of helper: a TextIOWrapper": space["step"],
            "default of 'x' of <lambda>: a TextIOWrapper": lambda x=file: x,
            "the item: a tensor on the device meta": torch.zeros(2, device="meta"),
            "the item: an ufunc": np.frompyfunc(lambda a: a, 1, 1),
            "the item[0]: a memoryview": [memoryview(b"a")],
        }
        for reason, item in told.items():
            assert undigested(item) == reason
            assert fingerprint(item) is None
        assert undigested(1, file) == "item 1: a TextIOWrapper"
    import ctypes

    assert undigested(closed_over(ctypes.c_int(1))) == "closure variable 'thing' of step: a c_int of ctypes"
    nested: tuple[object, ...] = ()
    for _ in range(5000):
        nested = (nested,)
    assert "nests too deep" in str(undigested([nested]))

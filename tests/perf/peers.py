"""gradbench beside torchdeq and plain autograd: agreement, time and lines, as the table of docs/peers.md.

    pip install torchdeq==0.1.0
    python tests/perf/peers.py            # prints the tables, and writes them into docs/peers.md
    python tests/perf/peers.py agreement  # the first of them alone, which is a matter of seconds

All of it is float64 on one thread. A time is the median of `PAIRS` turns in one process, in which the three take turns:
the ratio is what counts. What is compared is what a reader of either tool would call, at its default tolerances.
"""

from __future__ import annotations

import inspect
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchdeq
from torch import Tensor, nn

import gradbench as gb

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "peers.md"
PAIRS = 9
STEPS, TAU = 5, 0.5  # of the phantom gradients
DEEP = 400  # steps and terms that leave nothing to float64


class TanhLayer(nn.Module):
    """A tanh layer with a linear readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.recur, self.enter, self.head = (nn.Linear(width, width) for _ in range(3))
        nn.init.orthogonal_(self.recur.weight, 0.7)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.recur(z) + self.enter(x))


class Block(nn.Module):
    """A transformer block of torch after its norms, made a contraction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, width)
        with torch.no_grad():
            for p in self.layer.parameters():
                if p.ndim > 1:
                    p.mul_(0.5)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.7 * self.layer(z + x)


@dataclass(frozen=True)
class Case:
    """One model with its data, in float64."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    T1: int
    T2: int

    @classmethod
    def of(cls, name: str, kind: type[nn.Module], shape: tuple[int, ...], T1: int, T2: int) -> Case:
        torch.manual_seed(0)
        net = kind(shape[-1]).double().eval()
        return cls(name, net, torch.randn(*shape).double(), torch.randn(*shape).double(), T1, T2)

    def cost(self, z: Tensor) -> Tensor:
        return (self.net.head(z) - self.y).square().sum()  # type: ignore[operator, no-any-return]

    def system(self) -> Any:
        return gb.system(
            step=lambda net, x, z: net(z, x["x"]),
            cost=lambda net, x, z: (net.head(z) - x["y"]).square().flatten(1).sum(-1),
            state=lambda net, x: torch.zeros_like(x["x"]),
            params=self.net,
            data={"x": self.x, "y": self.y},
            name=self.name,
        )

    def unrolled(self, T1: int) -> dict[str, Tensor]:
        """Backpropagation through T1 steps, in plain autograd."""
        self.net.zero_grad()
        z = torch.zeros_like(self.x)
        for _ in range(T1):
            z = self.net(z, self.x)
        self.cost(z).backward()
        return self._grads()

    def damped(self, T1: int) -> dict[str, Tensor]:
        """Backpropagation through damped steps behind T1 plain ones, in plain autograd."""
        self.net.zero_grad()
        z = torch.zeros_like(self.x)
        with torch.no_grad():
            for _ in range(T1):
                z = self.net(z, self.x)
        for _ in range(STEPS):
            z = (1 - TAU) * z + TAU * self.net(z, self.x)
        self.cost(z).backward()
        return self._grads()

    def torchdeq(self, **how: Any) -> dict[str, Tensor]:
        """The gradient of torchdeq."""
        deq = torchdeq.get_deq(**how)
        self.net.zero_grad()
        z, _ = deq(lambda z: self.net(z, self.x), torch.zeros_like(self.x))
        self.cost(z[-1]).backward()
        return self._grads()

    def _grads(self) -> dict[str, Tensor]:
        return {n: p.grad.clone() for n, p in self.net.named_parameters() if p.grad is not None}


def gap(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|got - expected| / |expected|."""
    moved = math.hypot(*(float((got[n] - g).norm()) for n, g in expected.items()))
    return moved / math.hypot(*(float(g.norm()) for g in expected.values()))


def agreement(case: Case) -> dict[str, float]:
    """The largest gaps of the gradients of gradbench to the same ones of plain autograd and of torchdeq."""
    mine = case.system()
    tight = {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter"}
    tight |= {f"{way}_{what}": value for way in "fb" for what, value in (("max_iter", DEEP), ("tol", 1e-15))}

    def measured(rule: str, T2: int = DEEP, **options: Any) -> dict[str, Tensor]:
        m = gb.measure(mine, rule, T1=DEEP, T2=T2, dtype="float64", estimator_options=options)
        assert m.status == "settled"
        assert m.residual <= 1e-14
        return m.estimate

    solves = [measured("adjoint"), *(measured("ift", linear_solver=by) for by in ("gmres", "bicgstab", "anderson"))]
    series = [measured("phantom", STEPS, lam=TAU, form=form) for form in ("series", "unrolled")]
    ift, phantom = case.torchdeq(ift=True, **tight), case.torchdeq(grad=STEPS, tau=TAU, **tight)
    early = gb.measure(mine, "phantom", T1=case.T1, T2=STEPS, dtype="float64", estimator_options={"form": "unrolled"})
    return {
        "bptt": gap(gb.measure(mine, "bptt", T1=case.T1, dtype="float64").reference, case.unrolled(case.T1)),
        "implicit": max(gap(got, ift) for got in solves),
        "jfb": gap(measured("jfb"), case.torchdeq(grad=1, tau=1.0, **tight)),
        "phantom": max(gap(got, phantom) for got in series),
        "on the way": gap(early.estimate, case.damped(case.T1)),
    }


def times(case: Case) -> dict[str, float]:
    """Milliseconds: medians of turns taken one after the other."""
    mine = case.system()
    calls: dict[str, Callable[[], object]] = {
        "torchdeq": lambda: case.torchdeq(ift=True),
        "unrolled": lambda: case.unrolled(case.T1),
        "gradbench": lambda: gb.measure(mine, "adjoint", T1=case.T1, T2=case.T2, dtype="float64"),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(PAIRS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first turn warms up
                taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in taken.items()}


def lines(function: Callable[..., object]) -> int:
    """Lines of code of a function or a method, its documentation left out."""
    source = inspect.getsource(function).splitlines()
    return sum(bool(line.strip()) and not line.strip().startswith(('"""', "@classmethod")) for line in source) - 1


def cases() -> tuple[Case, ...]:
    """A small model and a larger one."""
    return (
        Case.of("tanh layer, d = b = 64", TanhLayer, (64, 64), 60, 30),
        Case.of("transformer block, 16 x 16 x 64", Block, (16, 16, 64), 40, 14),
    )


def agreements() -> str:
    """The table of agreement, in Markdown."""
    rows = [
        f"`python tests/perf/peers.py agreement`, torch {torch.__version__}, torchdeq 0.1.0, float64.",
        "",
        "| model | bptt and plain autograd | adjoint, ift and `ift=True` | jfb and `grad=1` "
        f"| phantom and `grad={STEPS}, tau={TAU}` | phantom, unrolled, and plain autograd after T1 steps |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases():
        rows.append(f"| {case.name} | {' | '.join(f'{number:.1e}' for number in agreement(case).values())} |")
    return "\n".join(rows) + "\n"


def table() -> str:
    """The tables of times and lines, in Markdown."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in facts if line.startswith("model name")), platform.machine())
    rows = [
        f"`python tests/perf/peers.py`, commit {commit.stdout.strip()}, one thread of {cpu},",
        f"torch {torch.__version__}, torchdeq 0.1.0, float64.",
        "",
        "| model, T1, T2 | `ift`, forward and backward | unrolled backward | `gb.measure` | ratio |",
        "|---|---|---|---|---|",
    ]
    for case in cases():
        took = times(case)
        ratio = took["gradbench"] / (took["torchdeq"] + took["unrolled"])
        shown = " | ".join(f"{took[name]:.1f} ms" for name in ("torchdeq", "unrolled", "gradbench"))
        rows.append(f"| {case.name}, {case.T1}, {case.T2} | {shown} | {ratio:.2f} |")
    own = {"model in gradbench": Case.system, "model in torchdeq": Case.torchdeq}
    rows += ["", "| lines | |", "|---|---|", *(f"| {what} | {lines(function)} |" for what, function in own.items())]
    return "\n".join(rows) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    written = {"agreement": agreements} if sys.argv[1:] == ["agreement"] else {"agreement": agreements, "table": table}
    for marker, make in written.items():
        made, begin = make(), f"<!-- {marker} -->\n"
        print(made)
        before, _, rest = PAGE.read_text().partition(begin)
        PAGE.write_text(f"{before}{begin}\n{made}\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


if __name__ == "__main__":
    main()

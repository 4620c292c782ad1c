"""How large a system of your own may be: `measure` of a convolutional one, in memory and seconds.

    python tests/perf/size.py [DEVICE] [BATCH]     # cuda 32 by default; cpu 4 takes some minutes

204,800 state numbers an example, 5 million parameters, T1 = 100, T2 = 20, float32.
"""

from __future__ import annotations

import resource
import sys
import time

import torch
from torch import Tensor, nn

import gradbench as gb

CHANNELS, INNER, SIDE, CLASSES = 128, 1088, 40, 10


class Block(nn.Module):
    """Two pairs of convolutions around a wide layer, made a contraction."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.ModuleList(nn.Conv2d(CHANNELS, INNER, 3, padding=1) for _ in range(2))
        self.back = nn.ModuleList(nn.Conv2d(INNER, CHANNELS, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        for out, back in zip(self.out, self.back, strict=True):
            z = 0.7 * torch.tanh(back(torch.tanh(out(z) + 0.1)) + x)
        return z


def system(batch: int) -> object:
    """The block with a linear readout of its mean over places."""
    torch.manual_seed(0)
    data = {"x": torch.randn(batch, CHANNELS, SIDE, SIDE), "y": torch.randn(batch, CLASSES)}
    return gb.system(
        name="convolutional",
        params=Block(),
        data=data,
        step=lambda net, x, z: net(x["x"], z),
        cost=lambda net, x, z: (net.head(z.mean((-2, -1))) - x["y"]).square().sum(-1),
        state=lambda net, x: torch.zeros_like(x["x"]),
    )


if __name__ == "__main__":
    device, batch = (sys.argv[1:] + ["cuda", "32"][len(sys.argv) - 1 :])[:2]
    start = time.perf_counter()
    made = system(int(batch))
    print(f"{made}; gradbench.system: {time.perf_counter() - start:.1f} s", flush=True)
    for _ in range(2 if device == "cuda" else 1):
        start = time.perf_counter()
        found = gb.measure(made, "adjoint", T1=100, T2=20, device=device)
        seconds = time.perf_counter() - start
        memory = (
            found.row["peak_memory"] if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        print(f"measure on {device}, b = {batch}: {seconds:.1f} s, {memory / 2**30:.1f} GiB; {found}", flush=True)
        print({name: found.row.get(name) for name in ("recorded", "reference_open", "rho")})

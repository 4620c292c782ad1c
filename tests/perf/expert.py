"""One depth of cet_real by bptt and aep, as an expert writes it by hand for many problems at once. Do not change it.

What `make perf` times gradbench against: all problems as one batch, derivatives written out, pixels in the order of
patches throughout, every phase recorded as a CUDA graph on a GPU, the pull of backpropagation as one product over all
steps. It measures both gradients and the cosine between them, and nothing else: no certificate, no cause, no status, no
table. `tests/test_expert.py` holds its digest, and its numbers to those of gradbench in float64.

Letters: C problems, R tokens of a problem (N of each of b examples), D numbers of a token, P pixels of a patch, M
memories, H heads of h numbers. A state is tokens z (C, R, D) and pixels y (C, R, P). c is the damping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradbench.systems.tokens import patches, token_norm

Pair = tuple[Tensor, Tensor]


class Expert:
    """Problems that differ in weights, data, sigma, damping c and step eps."""

    def __init__(
        self, theta: Mapping[str, Tensor], x: Mapping[str, Tensor], knobs: Sequence[Tensor], patch: int
    ) -> None:
        """Stacked tensors: theta and data with a leading axis of problems, sigma, c and eps one number a problem."""
        self.sigma, self.c, self.eps = (k.reshape(-1, 1, 1) for k in knobs)
        self.C, b, self.channels = x["x"].shape[:3]
        dec, enc, self.mem = (theta[n].flatten(2) if n != "Wmem" else theta[n] for n in ("Wdec", "Wenc", "Wmem"))
        self.Q, self.K, self.V = (theta[n].flatten(1, 2).mT for n in ("WQ", "WK", "WV"))
        self.O, self.H = theta["WO"], theta["WQ"].shape[1]
        self.widths = dec.shape[-1], self.mem.shape[-1], self.O.shape[-1]
        self.ahead_in = torch.cat([dec, self.mem, self.Q, self.K, self.V], -1)
        self.ahead_out = torch.cat([dec.mT, 2 * self.mem.mT, self.O.mT], -2)
        self.back_in = torch.cat([dec, self.mem, self.O], -1)
        self.back_out = torch.cat([dec.mT, 2 * self.mem.mT, self.Q.mT, self.K.mT, self.V.mT], -2)
        self.skew_in = torch.cat([self.Q, self.K, self.V, self.O], -1)
        self.skew_out = torch.cat([self.O.mT, -self.Q.mT, -self.K.mT, -self.V.mT], -2)
        self.hidden, self.target = (patches(x[n], patch).flatten(1, 2) for n in ("mask", "x"))
        self.seen = patches(x["x"] * (1 - x["mask"]), patch).flatten(1, 2)
        encoded = self.seen @ enc.mT
        self.N = theta["bpos"].shape[1]
        self.input = encoded + theta["benc"][:, None] + theta["bpos"].repeat(1, b, 1)
        self.bias = theta["bdec"].repeat_interleave(dec.shape[-1] // theta["bdec"].shape[-1], -1)[:, None]
        self.start = token_norm(encoded), self.seen

    def recorded(self, function: Callable[[], object]) -> Callable[[], object]:
        """A function that writes into fixed tensors as a CUDA graph; on a CPU itself."""
        if not self.seen.is_cuda:
            return function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay

    def heads(self, f: Tensor) -> Tensor:
        """(C, R, Hh) -> (C b H, N, h)."""
        split = f.unflatten(1, (-1, self.N)).unflatten(-1, (self.H, -1)).transpose(2, 3)
        return split.reshape(-1, self.N, f.shape[-1] // self.H)

    def merge(self, f: Tensor) -> Tensor:
        """Undo `heads`, and scale by sigma."""
        joined = f.unflatten(0, (self.C, -1, self.H)).transpose(2, 3)
        return self.sigma * joined.reshape(self.C, -1, self.H * f.shape[-1])

    def attention(self, z: Tensor) -> tuple[Tensor, ...]:
        """q, k, v and P at tokens."""
        q, k, v = (self.heads(f) for f in (z @ self.ahead_in[..., sum(self.widths[:2]) :]).chunk(3, -1))
        return q, k, v, (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

    def force(self, z: Tensor, y: Tensor, clamped: Tensor) -> Pair:
        """F, with the part of the tokens' force that is the same at every state."""
        decoded, memory, *features = (z @ self.ahead_in).split([*self.widths, *[self.widths[2]] * 2], -1)
        q, k, v = map(self.heads, features)
        o = self.merge((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
        returned = torch.cat([y, memory.relu(), o], -1) @ self.ahead_out
        return clamped + returned - (4 + self.c) * z, decoded + self.bias - y

    def through(self, saved: tuple[Tensor, ...], a: Tensor) -> tuple[Tensor, ...]:
        """The credits of q, k and v for a credit a of the outputs of the heads."""
        q, k, v, P = saved
        dP = P * (a @ v.mT)
        dS = (dP - P * dP.sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        return self.merge(dS @ k), self.merge(dS.mT @ q), self.merge(P.mT @ a)

    def credits(self, z: Tensor, a: Tensor, a_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The credits of the features, what the credit of the tokens decodes to, and the features."""
        saved, memory = self.attention(z), (z @ self.mem).relu()
        decoded, from_memory, from_heads = (a @ self.back_in).split(self.widths, -1)
        row = torch.cat([a_y, from_memory * (memory > 0), *self.through(saved, self.heads(from_heads))], -1)
        return row, decoded, torch.cat([memory, self.merge(saved[3] @ saved[2])], -1)

    def pull(self, z: Tensor, y: Tensor, a: Tensor, a_y: Tensor, row: Tensor, features: Tensor) -> dict[str, Tensor]:
        """d<a, F>/dtheta, summed over all rows (C, R', .), which may be those of many steps."""
        P, M, W = self.widths
        reading, features = z.mT @ row, torch.cat([y, features], -1)
        writing, token = a.mT @ features, a.unflatten(1, (-1, self.N)).sum(1)
        steps = a.unflatten(1, (-1, self.start[0].shape[1])).sum(1)
        return {
            "Wenc": steps.mT @ self.seen, "benc": token.sum(1), "bpos": token,
            "Wdec": reading[..., :P] + writing[..., :P], "bdec": a_y.sum(1).unflatten(-1, (self.channels, -1)).sum(-1),
            "Wmem": 2 * (reading[..., P : P + M] + writing[..., P : P + M]),
            "WQ": reading[..., -3 * W : -2 * W].mT, "WK": reading[..., -2 * W : -W].mT, "WV": reading[..., -W:].mT,
            "WO": writing[..., -W:],
        }  # fmt: skip

    def gradients(self, T1: int, T2: int, beta: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The gradients by backpropagation through T1 steps, and by asymmetric equilibrium propagation."""
        z, y = (v.clone() for v in self.start)
        zs, ys = (v.new_empty((self.C, T1, *v.shape[1:])) for v in (z, y))

        def ahead() -> None:
            F_z, F_y = self.force(z, y, self.input)
            z.addcmul_(self.eps, F_z)
            y.addcmul_(self.eps, F_y)

        step = self.recorded(ahead)
        z.copy_(self.start[0])
        y.copy_(self.start[1])
        for t in range(T1):
            zs[:, t], ys[:, t] = z, y
            step()
        at, (a, a_y) = z.clone(), (torch.zeros_like(z), self.hidden * (y - self.target))
        as_, a_ys = torch.empty_like(zs), torch.empty_like(ys)
        rows = z.new_empty((self.C, T1, z.shape[1], self.back_out.shape[-2]))
        features = z.new_empty((self.C, T1, z.shape[1], sum(self.widths[1:])))
        row, feature = rows[:, 0].clone(), features[:, 0].clone()
        first = a_y.clone()

        def back() -> None:
            made, decoded, outputs = self.credits(at, a, a_y)
            row.copy_(made)
            feature.copy_(outputs)
            returned = made @ self.back_out - (4 + self.c) * a
            moved = decoded - a_y
            a.addcmul_(self.eps, returned)
            a_y.addcmul_(self.eps, moved)

        step = self.recorded(back)
        a.zero_()
        a_y.copy_(first)
        for t in reversed(range(T1)):
            at.copy_(zs[:, t])
            as_[:, t], a_ys[:, t] = a, a_y
            step()
            rows[:, t], features[:, t] = row, feature
        over_time = [v.flatten(1, 2) for v in (zs, ys, as_, a_ys, rows, features)]
        bptt = self.pull(*over_time)
        bptt = {n: self.eps.reshape(-1, *[1] * (g.ndim - 1)) * g for n, g in bptt.items()}
        credit, credit_y = self.nudged(z, y, T2, beta)
        made, _, outputs = self.credits(z, credit, credit_y)
        return bptt, self.pull(z, y, credit, credit_y, made, outputs)

    def nudged(self, z: Tensor, y: Tensor, T2: int, beta: float) -> Pair:
        """(s_- - s_+) / 2 beta after T2 steps with the correction 2 A (s - s*). Both signs are one batch."""
        z, y, clamped, hidden, target = (v.repeat(1, 2, 1) for v in (z, y, self.input, self.hidden, self.target))
        nudge = torch.tensor([beta, -beta], dtype=z.dtype, device=z.device).repeat_interleave(z.shape[1] // 2)[:, None]
        saved, s, s_y, nudge = self.attention(z), z.clone(), y.clone(), nudge * hidden
        q, k, v, P = saved

        def ahead() -> None:
            F_z, F_y = self.force(s, s_y, clamped)
            dq, dk, dv, a = map(self.heads, ((s - z) @ self.skew_in).chunk(4, -1))
            dS = P * (dq @ k.mT + q @ dk.mT) / q.shape[-1] ** 0.5
            o = (dS - P * dS.sum(-1, keepdim=True)) @ v + P @ dv
            bent = torch.cat([self.merge(o), *self.through(saved, a)], -1) @ self.skew_out
            s_y.addcmul_(self.eps, F_y - nudge * (s_y - target))
            s.addcmul_(self.eps, F_z - bent)

        step = self.recorded(ahead)
        s.copy_(z)
        s_y.copy_(y)
        for _ in range(T2):
            step()
        credits = [(minus - plus) / (2 * beta) for plus, minus in (v.chunk(2, 1) for v in (s, s_y))]
        return credits[0], credits[1]

    def cosines(self, T1: int, T2: int, beta: float) -> Tensor:
        """The global cosine of every problem."""
        bptt, aep = (torch.cat([v.flatten(1) for v in g.values()], -1) for g in self.gradients(T1, T2, beta))
        return torch.nn.functional.cosine_similarity(bptt, aep, -1)

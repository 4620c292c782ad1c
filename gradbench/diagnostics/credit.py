"""Does the credit that a rule assigns to the state point where the reference's does? Block by block.

The *reference credit* is the state gradient that the reference itself goes by.
  relaxing systems  eps sum_{t<T1} p_t, what the reverse sweep hands to F in all its steps; at a settled state this
                    is the adjoint -J^-T dC/ds. Blocks are those of the state, and all of them count.
  forward systems   dC/dh_l, total through the layers above: what backpropagation carries. Layers h_0 ... h_L; h_L
                    is next to the cost and does not count, h_0 is clamped and is counted in `gamma`, not in
                    `gamma_free`.
Two credits of a rule are read. The *displacement* a of the state tends to the adjoint -J^-T dC/ds, which on a forward
system is (D^T D)^-1 dC/ds with D = de/ds: backprop's gradient D^-T dC/ds carried forward again through the blocks
below. The *prediction error* of the nudged state, D a to first order, tends to backprop's gradient itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from gradbench.data.streams import Streams, normal
from gradbench.dynamics.trajectory import chosen
from gradbench.systems.base import AbstractForwardSystem

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from gradbench.dynamics.trajectory import Trajectory
    from gradbench.estimators.base import Reading

SUMMARY = ("gamma", "gamma_free", "gamma_error", "gamma_error_free", "rho_corr", "rho_corr_free", "state_error")
PROBES = 16  # perturbations of a sample and layer
PROBE_SIZE = 1e-3  # of a perturbation; cost differences are taken in float64
NO_SPREAD = 1e-12  # a standard deviation below this correlates with nothing


@dataclass(frozen=True, eq=False)
class Credits:
    """The reference credits of a trajectory, and readings against them."""

    free: Trajectory
    swept: Float[Tensor, "i *c b n"]  # credit of the reverse sweep, by T1
    seeds: Sequence[int]  # of the cells of a stack, for the perturbations

    def read(self, T1s: tuple[int, ...], reading: Reading) -> dict[str, Float[Tensor, "i j *c"]]:
        """Summaries by name, and the readings of a block as `block/name`. Empty where the rule has no state credit.

        A cosine is the batch mean of the samples' cosines. The cosine of a sample is 0 where the rule gives it no
        credit, and NaN where the reference is zero.
        """
        if reading.credit is None:
            return {}
        readings: dict[str, Tensor] = {}
        reference = self._reference(T1s)
        for name, block in self._blocks(reading.credit).items():
            readings[f"{name}/cosine"] = _cosine(block, reference[name])
            readings[f"{name}/norm_ratio"] = _norm(block) / _norm(reference[name])
        counted = list(reference)[: -1 if self._forward else None]
        for name, block in (self._blocks(reading.error) if reading.error is not None else {}).items():
            readings[f"{name}/cosine_error"] = _cosine(block, reference[name])
        for name, (v, rise) in self._probes.items():
            felt = (self._blocks(reading.credit)[name][:, :, None] * v).sum(-1)
            readings[f"{name}/rho_corr"] = _pearson(felt, rise.expand_as(felt))
        for name, column in (("gamma", "cosine"), ("gamma_error", "cosine_error"), ("rho_corr", "rho_corr")):
            if values := {b: readings[f"{b}/{column}"] for b in counted if f"{b}/{column}" in readings}:
                free = [v for b, v in values.items() if b not in self._clamped]
                readings[name] = _mean(list(values.values()), readings)
                readings[f"{name}_free"] = _mean(free, readings)
        if self._forward:
            readings["state_error"] = self._state_error.expand_as(readings["gamma"])
        return readings

    @cached_property
    def _forward(self) -> bool:
        return isinstance(self.free.field.system, AbstractForwardSystem)

    @cached_property
    def _clamped(self) -> dict[str, tuple[int, ...]]:
        system = self.free.field.system
        return system.clamped if isinstance(system, AbstractForwardSystem) else {}

    def _blocks(self, s: Float[Tensor, "*r b n"]) -> dict[str, Float[Tensor, "*r b d"]]:
        """Blocks of a state in float64, each flat. Clamped layers come first, with zeros: they never get credit."""
        state = {name: block.flatten(s.ndim - 1) for name, block in self.free.field.system.split(s.double()).items()}
        missing = {n: s.new_zeros((*s.shape[:-1], math.prod(d)), dtype=torch.float64) for n, d in self._clamped.items()}
        return missing | state

    def _reference(self, T1s: tuple[int, ...]) -> dict[str, Float[Tensor, "i 1 *c b d"]]:
        rows = self.free.rows(T1s)
        if self._forward:
            slopes = self.free.field.wide.layer_slopes
            return {name: part.expand(len(rows), 1, *part.shape) for name, part in self._layers(slopes)}
        return self._blocks(chosen(self.swept, rows)[:, None])

    def _layers(self, h: Float[Tensor, "*r b m"]) -> Iterator[tuple[str, Float[Tensor, "*r b d"]]]:
        system = self.free.field.system
        assert isinstance(system, AbstractForwardSystem)
        sizes = [math.prod(shape) for shape in system.layers.values()]
        yield from zip(system.layers, h.split(sizes, -1), strict=True)

    @cached_property
    def _unmoved(self) -> dict[str, Float[Tensor, "*c b d"]]:
        """Every layer of the forward pass."""
        with torch.no_grad():
            return dict(self._layers(self.free.field.wide.forward(torch.zeros_like(self.free.field.wide.layer_slopes))))

    @cached_property
    def _probes(self) -> dict[str, tuple[Float[Tensor, "p *c b d"], Float[Tensor, "p *c b"]]]:
        """Perturbations of every layer of a forward system that counts, and the rise of the cost by each."""
        if not self._forward:
            return {}
        field, slopes = self.free.field.wide, self.free.field.wide.layer_slopes
        unmoved = field.cost(field.init_state())
        probes, start = {}, 0
        for name, layer in list(self._unmoved.items())[:-1]:
            shape = (PROBES, *layer.shape[-2:])
            draws = torch.stack([normal(Streams(seed)[f"perturb {name}"], shape) for seed in self.seeds], 1)
            v = (draws if layer.ndim == 3 else draws[:, 0]).to(layer)
            v = PROBE_SIZE * v / v.norm(dim=-1, keepdim=True)
            offset = torch.zeros_like(slopes).expand(PROBES, *slopes.shape).clone()
            offset[..., start : start + layer.shape[-1]] = v
            with torch.no_grad():
                moved = field.forward(offset)[..., -field.init_state().shape[-1] :]
                probes[name] = (v, field.cost(moved) - unmoved)
            start += layer.shape[-1]
        return probes

    @cached_property
    def _state_error(self) -> Float[Tensor, "*c"]:
        """|h_{L/2} - h_L| / |h_L|, the mean over examples."""
        layers = list(self._unmoved.values())
        last, middle = layers[-1], layers[(len(layers) - 1) // 2]
        return ((middle - last).norm(dim=-1) / last.norm(dim=-1)).mean(-1)


def blocks(evidence: Mapping[str, float]) -> list[dict[str, Any]]:
    """The readings of every block of one cell, in the order of the state, from what `Credits.read` gives."""
    rows: dict[str, dict[str, Any]] = {}
    for key, value in evidence.items():
        block, slash, name = key.partition("/")
        if slash:
            rows.setdefault(block, {"block": block})[name] = value
    return list(rows.values())


def _norm(v: Tensor) -> Tensor:
    return v.flatten(-2).norm(dim=-1)


def _cosine(credit: Float[Tensor, "i j *c b d"], reference: Float[Tensor, "i 1 *c b d"]) -> Float[Tensor, "i j *c"]:
    size, known = credit.norm(dim=-1), reference.norm(dim=-1)
    cosine = (credit * reference).sum(-1) / (size * known)
    return torch.where((size == 0) & (known > 0), torch.zeros_like(cosine), cosine).mean(-1)


def _pearson(x: Float[Tensor, "i j p *c b"], y: Float[Tensor, "i j p *c b"]) -> Float[Tensor, "i j *c"]:
    """Correlation over perturbations and examples; 0 where one of the two does not vary."""
    x, y = (v - v.mean((2, -1), keepdim=True) for v in (x, y))
    deviation = [v.square().mean((2, -1)).sqrt() for v in (x, y)]
    flat = (deviation[0] < NO_SPREAD) | (deviation[1] < NO_SPREAD)
    r = (x * y).mean((2, -1)) / (deviation[0] * deviation[1])
    return torch.where(flat, torch.zeros_like(r), r)


def _mean(values: list[Tensor], readings: Mapping[str, Tensor]) -> Tensor:
    like = next(iter(readings.values()))
    return torch.stack(values).mean(0) if values else torch.full_like(like, math.nan)

"""Convolutional Hopfield networks with pooling and symmetric connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from gradbench.systems.base import AbstractEnergySystem
from gradbench.systems.conv_layers import AbstractConvLayers


@final
@dataclass(frozen=True)
class ConvHopfield(AbstractConvLayers, AbstractEnergySystem):
    """Convolutional Hopfield network with pooling and symmetric connections.

    E = 1/2 |s|^2 - <r, i> - sum_l <r_l, P(w_l * r_{l-1})>,   r = rho(s) = 1 / (1 + exp(2 - 4 s)),   the last one dense
    F = rho'(s) (K r + i) - s = -dE/ds,   i the image, convolved and pooled, and the biases
    (K r)_l = P(w_l * r_{l-1}) + (P(w_{l+1} * .))^T r_{l+1}.   C = 1/2 |s_last - onehot(label)|^2
    rho is a smooth form of the papers' hard sigmoid, and P an average where they take the maximum: see `pooling`.
    """

    name: ClassVar[str] = "conv_hopfield"
    source: ClassVar[str] = "Scellier & Bengio 2017 (the energy); Ernoult et al. 2019, Laborieux et al. 2021"

    @property
    def returning(self) -> list[str]:
        return self.connections

"""The reference that every estimate is compared with."""

from __future__ import annotations

from gradbench.estimators.base import AbstractEstimator
from gradbench.estimators.reverse import Bptt

REFERENCE: AbstractEstimator = Bptt()

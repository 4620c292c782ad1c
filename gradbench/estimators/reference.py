"""The references that estimates are compared with."""

from __future__ import annotations

from gradbench.estimators.base import AbstractEstimator
from gradbench.estimators.bptt import Bptt

REFERENCE: AbstractEstimator = Bptt()
IMPLICIT = "implicit"  # the name of the other one, which is no rule

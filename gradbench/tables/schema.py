"""The explicit Arrow schema of the result tables.

`cells` has a row for every planned cell, `params` for every (cell, parameter), `blocks` for every (cell, block of the
state), `budget` for every (cell with a cause, parameter). A record on disk is a table `cells` whose rows carry the
other three tables as nested lists, so that all numbers of a cell are written together or not at all. Numbers that only
some rules or systems know are a fourth list, `extra`, and become columns of float64 behind those of `cells`.
Null: a column does not apply to the cell. NaN: the column applies and its number is undefined, for the reason in the
row.
"""

from __future__ import annotations

import pyarrow as pa

from gradbench.vocabulary.cause import CAUSES, column
from gradbench.vocabulary.coordinates import COORDINATES

VERSION = 4

_S, _F, _I, _B = pa.string(), pa.float64(), pa.int64(), pa.bool_()

IDENTITY = {
    "cell": _S,  # content key
    "problem": _S,  # content key of the problem with this cell; null if skipped
    "system": _S,
    "system_options": _S,  # canonical JSON
    "system_label": _S,  # name and options that differ from the defaults
    "estimator": _S,
    "estimator_options": _S,
    "estimator_label": _S,
    **{name: {float: _F, int: _I, str: _S}[c.type] for name, c in COORDINATES.items()},
    "dataset": _S,
}

OUTCOME = {
    "status": _S,
    "reason": _S,
    "cosine": _F,
    "cosine_mean": _F,
    "cosine_min": _F,
    "cosine_attn": _F,
    "worst": _S,  # parameter with the smallest cosine
    "params_live": _I,  # parameters whose reference is above the floor of liveness; null: nothing was compared
    "params_zero": _I,  # of these, parameters whose estimate is exactly zero: their cosine is 0
    "params_undefined": _I,  # parameters without a cosine
    "norm_ratio": _F,
    "rel_error": _F,
    "sign_agreement": _F,
    "reference_norm": _F,
    "residual": _F,
    "settled_share": _F,
    "force_norm": _F,
    "state_norm": _F,
    "rho": _F,
    "antisymmetry": _F,
    "antisymmetry_se": _F,
    "antisymmetry_swirl": _F,
    "antisymmetry_swirl_se": _F,
    "energy_monotone": _B,
    "cause": _S,  # of an error above the threshold, where the status allows to look for a cause
    "cause_of": _S,  # the parameter whose error has this cause; empty: the whole gradient
    "residual_rate": _F,  # this column and the next eight are null without --certify
    "rho_arnoldi": _F,
    "rightmost": _F,  # null where the system projects
    "spectrum_open": _F,
    "sigma_max": _F,
    "condition": _F,
    "end_states": _I,
    "distance": _F,
    "angle": _F,
    "nudge_residual": _F,
    "clip_share": _F,
    "drift": _F,  # of the state at rest in the nudged phase, over the signal
    "curvature": _F,
    "noise_floor": _F,
    "rho_T2": _F,  # rho^T2: the share of the credit that T2 steps are expected to leave out
    "gamma": _F,  # cosine of the state credit, mean over blocks; a clamped layer counts as 0
    "gamma_free": _F,  # without the clamped layers
    "gamma_error": _F,  # as gamma, of the credit in prediction errors
    "gamma_error_free": _F,  # without the clamped layers
    "rho_corr": _F,  # correlation of the credit with the effect of perturbations on the cost
    "rho_corr_free": _F,
    "state_error": _F,
    "n_force": _I,  # evaluations that the cell needs alone, with the free phase and without the reference
    "n_jvp": _I,
    "n_vjp": _I,
    "seconds": _F,  # of the problem, over the number of its cells
    "peak_memory": _I,  # bytes on the device while the problem ran
}

PARAM = {
    "param": _S,
    "cosine": _F,
    "norm_ratio": _F,
    "rel_error": _F,
    "sign_agreement": _F,
    "reference_norm": _F,
    "reason": _S,  # why the cosine is undefined, or 0 by convention
}

BLOCK = {
    "block": _S,
    "cosine": _F,  # of the displacement with the reference credit, batch mean
    "cosine_error": _F,  # of the prediction error
    "norm_ratio": _F,
    "rho_corr": _F,
}

BUDGET = {
    "param": _S,  # empty: the whole gradient
    "rel_error": _F,
    **{column(cause): _F for cause in CAUSES},  # |change by this cause| / |reference|; null: not taken apart
}

EXTRA = {
    "column": _S,  # of the table `cells`, where it follows the columns of its schema
    "value": _F,
}

METADATA = {b"gradbench.schema": str(VERSION).encode()}

CELLS = pa.schema({**IDENTITY, **OUTCOME}, metadata=METADATA)
PARAMS = pa.schema({"cell": _S, **PARAM}, metadata=METADATA)
BLOCKS = pa.schema({"cell": _S, **BLOCK}, metadata=METADATA)
BUDGETS = pa.schema({"cell": _S, **BUDGET}, metadata=METADATA)
NESTED = {"params": PARAMS, "blocks": BLOCKS, "budget": BUDGETS}  # tables that a record nests in its rows
_LISTS = {name: pa.list_(pa.struct([field for field in rows if field.name != "cell"])) for name, rows in NESTED.items()}
_EXTRA = pa.list_(pa.struct(list(EXTRA.items())))
RECORD = pa.schema({**IDENTITY, **OUTCOME, **_LISTS, "extra": _EXTRA}, metadata=METADATA)

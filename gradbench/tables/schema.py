"""The explicit Arrow schema of the result tables.

`cells` has one row a planned cell, `params` one row a (cell, parameter), `blocks` one row a (cell, block of the
state), `budget` one row a (cell with a cause, parameter). A record on disk is a `cells` table whose rows carry these
as nested lists, so that a cell and what belongs to it are written together or not at all. Null: does not apply. NaN:
applies and is undefined, with a reason.
"""

from __future__ import annotations

import pyarrow as pa

from gradbench.cause import CAUSES, column

VERSION = 3

_S, _F, _I, _B = pa.string(), pa.float64(), pa.int64(), pa.bool_()

COORDINATES = {
    "cell": _S,  # content key
    "problem": _S,  # content key of the problem that it was part of; null if skipped
    "system": _S,
    "system_options": _S,  # canonical JSON
    "system_label": _S,  # name and options that differ from the defaults
    "estimator": _S,
    "estimator_options": _S,
    "estimator_label": _S,
    "s": _F,
    "damp": _F,
    "T1": _I,
    "T2": _I,
    "beta": _F,
    "eps": _F,
    "seed": _I,
    "dtype": _S,
    "batch": _I,
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
    "cause": _S,  # of an error above the threshold, where the status lets one be looked for
    "cause_of": _S,  # the parameter whose error it is; empty: the whole gradient's
    "residual_rate": _F,  # this and the next eight: null without --certify
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
    "rho_T2": _F,  # rho^T2: what a second phase of T2 steps is expected to leave out
    "gamma": _F,  # cosine of the state credit, the mean over blocks with clamped layers as 0
    "gamma_free": _F,  # without these
    "gamma_error": _F,  # the same of the credit that prediction errors hold
    "gamma_error_free": _F,
    "rho_corr": _F,  # correlation of the credit with what perturbations do to the cost
    "rho_corr_free": _F,
    "state_error": _F,
    "n_force": _I,  # evaluations that the cell needs by itself, free phase included, reference excluded
    "n_jvp": _I,
    "n_vjp": _I,
    "seconds": _F,  # of its problem, shared evenly among the problem's cells
    "peak_memory": _I,  # bytes, of the device while its problem ran
}

PARAM = {
    "param": _S,
    "cosine": _F,
    "norm_ratio": _F,
    "rel_error": _F,
    "sign_agreement": _F,
    "reference_norm": _F,
    "reason": _S,  # why the cosine is undefined
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
    **{column(cause): _F for cause in CAUSES},  # |what it changes| / |reference|; null: not taken apart
}

METADATA = {b"gradbench.schema": str(VERSION).encode()}

CELLS = pa.schema({**COORDINATES, **OUTCOME}, metadata=METADATA)
PARAMS = pa.schema({"cell": _S, **PARAM}, metadata=METADATA)
BLOCKS = pa.schema({"cell": _S, **BLOCK}, metadata=METADATA)
BUDGETS = pa.schema({"cell": _S, **BUDGET}, metadata=METADATA)
NESTED = {"params": PARAMS, "blocks": BLOCKS, "budget": BUDGETS}  # tables of their own, nested in a record
_LISTS = {name: pa.list_(pa.struct([field for field in rows if field.name != "cell"])) for name, rows in NESTED.items()}
RECORD = pa.schema({**COORDINATES, **OUTCOME, **_LISTS}, metadata=METADATA)

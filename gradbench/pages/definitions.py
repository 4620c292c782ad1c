"""What every number of a cell is: its formula and its unit, as a reader of the page needs them.

`vocabulary/notation.py` has the words of an axis; a figure has no room for these.
"""

from __future__ import annotations

RATIO = "a ratio"
DEFINITIONS = {
    "cosine": f"⟨ĝ, g⟩ / (|ĝ| |g|) over all parameters together, of the estimate ĝ and the "
    f"reference g; {RATIO}, -1 to 1",
    "cosine_mean": f"mean of the cosines of the live parameters; {RATIO}, -1 to 1",
    "cosine_min": f"smallest cosine ⟨ĝ, g⟩ / (|ĝ| |g|) of a live parameter; {RATIO}, -1 to 1",
    "cosine_attn": f"mean of the cosines of WQ, WK, WV and WO; {RATIO}, -1 to 1",
    "params_live": "parameters whose |g| is above the floor of liveness, a share of the global |g|; a count",
    "params_zero": "live parameters whose estimate is exactly 0, with a cosine of 0; a count",
    "params_undefined": "parameters without a cosine; a count",
    "norm_ratio": f"|ĝ| / |g| over all parameters together; {RATIO}, 1 where the size is right",
    "rel_error": f"|ĝ - g| / |g| over all parameters together; {RATIO}",
    "sign_agreement": "share of the entries above the noise floor in which ĝ and g have the same sign; 0 to 1",
    "reference_norm": "|g|, the norm of the reference gradient; in units of the cost per unit of a parameter",
    "reference_open": "|g - (1 - J_Gᵀ) a| / |g| of the credit a of backpropagation, g = ∂C/∂s: 0 where it solves the "
    f"equation of the fixed point; {RATIO}",
    "reference_gap": f"|bptt - implicit| / |bptt|, the distance of the two reference gradients; {RATIO}",
    "implicit_open": f"what the linear solve of the implicit reference leaves of its right side; {RATIO}",
    "residual": f"|G(s*) - s*| / |s*|, G one step of the free phase and s* its end state; {RATIO}",
    "settled_share": "share of the samples whose residual is at most the threshold; 0 to 1",
    "force_norm": "|F(s*)|, the norm of the force at the end state; in units of the state per unit of eps",
    "state_norm": "|s*|, the norm of the end state; in units of the state",
    "rho": "factor by which a perturbation of s* grows in a step: the spectral radius of J_G; per step, below 1 where "
    "s* is stable",
    "antisymmetry": f"|A|_F / |J|_F, A = (J - Jᵀ) / 2 and J = ∂F/∂s at s*, from random probes; {RATIO}, 0 where an "
    "energy exists",
    "antisymmetry_se": f"standard error of antisymmetry over the probes; {RATIO}",
    "antisymmetry_swirl": f"|A|_F / |J|_F of the part of the force that the system names its swirl; {RATIO}",
    "antisymmetry_swirl_se": f"standard error of antisymmetry_swirl over the probes; {RATIO}",
    "energy_monotone": "whether the energy falls in every step of the free phase, up to energy_rise; yes or no",
    "residual_rate": "factor of |s_(t+1) - s_t| in a step, over the last quarter of T1; per step, 1 is a plateau",
    "rho_arnoldi": "largest |λ(J_G)| from a Krylov space of 32 dimensions; per step",
    "rightmost": "largest Re λ(J), that is Re (λ(J_G) - 1) / eps; per unit of eps, below 0 where s* is stable",
    "spectrum_open": f"relative residual of these eigenvalues: what the Krylov space leaves open; {RATIO}",
    "sigma_max": "largest singular value of J_G, a lower bound; per step, above 1 where perturbations may grow before "
    "they fall",
    "condition": f"condition number of 1 - J_G, its largest singular value over its "
    f"smallest: a lower bound from the Krylov space; {RATIO}",
    "end_states": "how many different end states the samples have; a count",
    "distance": f"residual / (1 - rho_arnoldi): how far s* is from the fixed point, over |s*|; "
    f"{RATIO}, ∞ where rho ≥ 1",
    "angle": "angle between J⁻¹g and J⁻ᵀg, g = ∂C/∂s: how wrong a credit is that goes by J in place of Jᵀ; degrees",
    "nudge_residual": f"last step of the nudged phase over its whole displacement; {RATIO}",
    "clip_share": "share of the nudged steps whose correction was clipped; 0 to 1",
    "drift": f"|s_0 - s*| / signal, s_0 the state after T2 steps without a nudge, "
    f"signal the displacement by the nudge; {RATIO}",
    "curvature": f"|s_+ + s_- - 2 s_0| / |s_+ - s_-|: how far the response is from linear in beta; {RATIO}",
    "noise_floor": f"unit of round-off times |s*| / signal, signal the displacement by the nudge; {RATIO}",
    "draws": "draws of a rule that draws: every number of the row is that of their mean; a count",
    "variance": f"E|g_d - mean|^2 / |reference|^2, g_d the estimate of one draw; {RATIO}",
    "bias_se": f"standard error of the mean over |reference|, sqrt(variance / draws); {RATIO}",
    "rho_T2": f"rho^T2, the share of the credit that T2 steps are expected to leave out; {RATIO}",
    "gamma": "mean over blocks of the cosine of the rule's state credit with the reference credit; a clamped "
    "layer counts "
    "as 0; -1 to 1",
    "gamma_free": "gamma without the clamped layers; -1 to 1",
    "gamma_error": "gamma of the prediction errors, (e(s_-) - e(s_+)) / 2β, in place of the displacement; -1 to 1",
    "gamma_error_free": "gamma_error without the clamped layers; -1 to 1",
    "rho_corr": "Pearson correlation of ⟨a_l, δ⟩ with C(h_l + δ) - C(h_l) over examples and 16 "
    "directions, |δ| = 1e-3; -1 to 1",
    "rho_corr_free": "rho_corr without the clamped layers; -1 to 1",
    "state_error": f"mean over examples of |h_(L/2) - h_L| / |h_L|; {RATIO}",
    "n_force": "evaluations of the force that the cell needs alone, the free phase included, the reference "
    "not; a count",
    "n_jvp": "products J v that the cell needs alone; a count",
    "n_vjp": "products Jᵀ a that the cell needs alone; a count",
    "seconds": "time of the problem, over the number of its cells; seconds",
    "peak_memory": "largest memory on the device while the problem ran; bytes",
}

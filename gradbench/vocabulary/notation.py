"""How columns are written on an axis: symbol, words and unit. Coordinates are declared in `coordinates`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """How a column is written on an axis."""

    symbol: str
    words: str
    unit: str = ""
    log: bool = False  # spans decades: a logarithmic axis

    @property
    def axis(self) -> str:
        """Axis label: words, symbol, unit."""
        symbol = f" {self.symbol}" if self.symbol else ""
        return f"{self.words}{symbol} ({self.unit})" if self.unit else f"{self.words}{symbol}"


ATTENTION = ("WQ", "WK", "WV", "WO")  # the parameters of `cosine_attn`
METRICS = {
    "cosine": Word(r"$\cos$", "global cosine to BPTT"),
    "cosine_mean": Word(r"$\overline{\cos}$", "mean cosine over parameters"),
    "cosine_min": Word(r"$\min\,\cos$", "smallest cosine over parameters"),
    "cosine_attn": Word(r"$\cos_{QKVO}$", "mean cosine of attention"),
    "params_live": Word("", "live parameters"),
    "params_zero": Word("", "live parameters with a zero estimate"),
    "params_undefined": Word("", "parameters without a cosine"),
    "norm_ratio": Word(r"$|\hat g|/|g|$", "norm ratio"),
    "rel_error": Word(r"$|\hat g-g|/|g|$", "relative error", log=True),
    "sign_agreement": Word("", "sign agreement"),
    "residual": Word(r"$|G(s^*)-s^*|/|s^*|$", "free residual", log=True),
    "settled_share": Word("", "share of settled samples"),
    "force_norm": Word(r"$|F(s^*)|$", "force", log=True),
    "state_norm": Word(r"$|s^*|$", "state"),
    "rho": Word(r"$\rho$", "growth of perturbations", "per step"),
    "antisymmetry": Word(r"$|A|_F/|J|_F$", "antisymmetry of the Jacobian"),
    "antisymmetry_swirl": Word(r"$|A|_F/|J|_F$", "antisymmetry of the swirl"),
    "residual_rate": Word("", "factor of the residual", "per step"),
    "rho_arnoldi": Word(r"$\rho(J_G)$", "spectral radius"),
    "rightmost": Word(r"max Re $\lambda(J)$", "rightmost eigenvalue"),
    "spectrum_open": Word("", "residual of the eigenvalues", log=True),
    "sigma_max": Word(r"$\sigma_{max}(J_G)$", "largest singular value"),
    "condition": Word(r"$\kappa(1-J_G)$", "condition", log=True),
    "end_states": Word("", "end states that differ"),
    "distance": Word("", "distance to the fixed point", log=True),
    "angle": Word(r"$\angle(J^{-1}g, J^{-T}g)$", "angle of credits", "degrees"),
    "nudge_residual": Word("", "last nudged step per displacement", log=True),
    "clip_share": Word("", "share of clipped steps"),
    "drift": Word("", "drift of the state at rest, per displacement", log=True),
    "curvature": Word(r"$|s_++s_--2s_0|/|s_+-s_-|$", "curvature of the response", log=True),
    "rho_T2": Word(r"$\rho^{T_2}$", "truncation expected", log=True),
    "noise_floor": Word("", "round-off of the free state, per displacement", log=True),
    "gamma": Word(r"$\Gamma$", "cosine of the state credit"),
    "gamma_free": Word(r"$\Gamma$", "cosine of the state credit, free layers"),
    "gamma_error": Word(r"$\Gamma_e$", "cosine of the prediction-error credit"),
    "gamma_error_free": Word(r"$\Gamma_e$", "cosine of the prediction-error credit, free layers"),
    "rho_corr": Word(r"$\rho_{corr}$", "correlation with perturbations"),
    "rho_corr_free": Word(r"$\rho_{corr}$", "correlation with perturbations, free layers"),
    "state_error": Word(r"$|h_{L/2}-h_L|/|h_L|$", "state error"),
    "energy_monotone": Word("", "energy never rises"),
    "reference_norm": Word("$|g|$", "norm of the reference gradient", log=True),
    "reference_open": Word(r"$|g-(1-J_G^T)a|/|g|$", "distance of BPTT's credit from a fixed point's", log=True),
    "reference_gap": Word(r"$|g_{BPTT}-g_{impl}|/|g_{BPTT}|$", "gap between the references", log=True),
    "implicit_open": Word("", "residual of the implicit reference", log=True),
    "variance": Word(r"$E|\hat g_d-\hat g|^2/|g|^2$", "variance of a draw", log=True),
    "bias_se": Word("", "standard error of the mean over draws", log=True),
    "seconds": Word("", "time of a cell", "s", log=True),
}

"""The Fisher information of a measure, whose gradient is the force of the quantum potential."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_number, plain_numbers
from ..errors import ConfigError
from ..measures import Sampled
from .base import Energy, shares


class FisherInformation(Energy):
    r"""F(ρ) = (σ⁴/8) E_ρ|∇ log ρ|², with the velocity v = (σ⁴/4)[∇(∇·s) + (∇s)s], s = ∇ log ρ the score.

    Its first variation is the quantum (Bohm) potential δF/δρ = −(σ⁴/8)(2∇·s + |s|²) = −(σ⁴/2) Δ√ρ/√ρ. With σ² = ħ and
    unit mass, the Hamiltonian flow of `Potential(V) + FisherInformation(sigma)` (scheme `PWHF`) is Schrödinger's
    equation iħψ̇ = −½ħ²Δψ + Vψ for ρ = |ψ|², with ħ∇ arg ψ as the velocity of the samples. `8 * FisherInformation()` is
    E|s|² itself. For N(m, C): F = (σ⁴/8) tr C⁻¹ and v = (σ⁴/4) C⁻²(x − m).

    The velocity takes third derivatives of log ρ, which are four of the map in z: by automatic differentiation, at a
    cost that grows with d (`PushedMeasure.score_derivatives`). A law with an edge has an infinite Fisher information,
    or one that samples do not see, and is refused.

    Args:
        sigma: σ > 0.

    Raises:
        ConfigError: σ out of range; at the first use: a measure without these derivatives, or a reference with an edge.

    Example:
        >>> import torch, pwgf
        >>> from pwgf import energies
        >>> rho = pwgf.measures.PushedMeasure(
        ...     pwgf.maps.Affine(1), pwgf.Gaussian(1), pwgf.maps.Affine(1).initial(), torch.ones(1, 1).double()
        ... )
        >>> energies.FisherInformation().velocity(rho)  # ¼ C⁻²(x − m)
        tensor([[0.2500]], dtype=torch.float64)

    References:
        Chow, Li, Zhou, Wasserstein Hamiltonian flows, 2019, arXiv 1903.01088.
        Wu, Liu, Ye, Zhou, Parameterized Wasserstein Hamiltonian flow, 2023, arXiv 2306.00191.
    """

    weighable = True

    @plain_numbers
    def __init__(self, sigma: float = 1.0) -> None:
        check_number(sigma, "sigma", "FisherInformation", low=0.0, high=float("inf"), open_low=True)
        self.sigma = float(sigma)

    @property
    def label(self) -> str:
        """fisher."""
        return "fisher"

    def try_functions(self, rho: Sampled) -> None:
        """Whether the law has no edge, where its score would be infinite or jump."""
        reference = getattr(rho, "reference", None)
        if reference is not None and reference.edge != "none":
            raise ConfigError(
                f"FisherInformation() of a law pushed from {type(reference).__name__}, which has an edge: its score is "
                "infinite or jumps there, and so is the Fisher information. Start from a smooth law that is positive "
                "everywhere, such as Gaussian(dim, mean, cov)."
            )
        super().try_functions(rho)

    def __call__(self, rho: Sampled) -> Tensor:
        """(σ⁴/8) times the mean of |s|²."""
        score = getattr(rho, "traced_score", None)
        square = (rho.score if score is None else score).square().sum(-1)
        return self.sigma**4 / 8 * shares(rho).mean(square)

    def velocity(self, rho: Sampled) -> Tensor:
        """(σ⁴/4)[∇(∇·s) + (∇s)s], (n,d)."""
        derivatives = getattr(rho, "score_derivatives", None)
        if derivatives is None:
            raise ConfigError(
                f"FisherInformation(): the velocity needs third derivatives of log ρ, which {type(rho).__name__} does "
                "not have. Use pwgf.PWHF or pwgf.PWGF, whose densities are those of a map."
            )
        slope, bend = derivatives()
        return self.sigma**4 / 4 * (bend + torch.einsum("nij,nj->ni", slope, rho.score.detach()))

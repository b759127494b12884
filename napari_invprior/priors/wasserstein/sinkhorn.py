"""Smoothed and partly relaxed transport between patch distributions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from napari_invprior.parameters import parameter
from napari_invprior.priors.wasserstein.discrepancy import DiscrepancyParameters, PatchDiscrepancy
from napari_invprior.priors.wasserstein.reference_cloud import ReferencePatches
from napari_invprior.registry import register
from napari_invprior.transport.semi_discrete.semi_dual import SemiDual

Blur = Annotated[float, Field(ge=1e-4, le=10)]


class SinkhornParameters(DiscrepancyParameters):
    """Patches, scales and smoothing."""

    blur: Blur = parameter(
        0.035, "Distance below which reference patches are averaged rather than chosen from.",
        unit="grey, 0-1",
    )


@register(
    kind="prior",
    name="sinkhorn",
    title="Sinkhorn patch prior",
    papers=("2312.16611",),
    inputs=("references",),
    outputs=("prior", "maps"),
    needs_references=True,
)
class SinkhornPatchPrior(PatchDiscrepancy):
    """Entropic transport between patch distributions: each patch goes to an average of patches.

    ``min_pi sum pi_ij |p_i - q_j|^2 + 2 blur^2 KL(pi | mu x nu)`` at each scale: twice the cost
    that carries a factor 1/2. Without debiasing.
    """

    Parameters = SinkhornParameters
    parameters: SinkhornParameters
    balanced = True

    def _dual(self, reference: ReferencePatches) -> SemiDual:
        return SemiDual(
            reference.patches, reference.weights, epsilon=2 * self.parameters.blur**2
        )


class SemiUnbalancedParameters(SinkhornParameters):
    """Patches, scales, smoothing and freedom."""

    reach: Annotated[float, Field(ge=1e-4, le=100)] = parameter(
        0.1,
        "Freedom to use reference patches more or less often than they occur; small is free, "
        "large is balanced.",
        unit="grey, 0-1",
    )


@register(
    kind="prior",
    name="semi_unbalanced",
    title="Semi-unbalanced patch prior",
    papers=("2312.16611",),
    inputs=("references",),
    outputs=("prior", "maps"),
    needs_references=True,
)
class SemiUnbalancedPatchPrior(PatchDiscrepancy):
    """Transport that may leave reference patches unused, where the image does not show them.

    ``min_pi sum pi_ij |p_i - q_j|^2 + 2 blur^2 KL(pi | mu x nu) + 2 reach^2 KL(pi_2 | nu)``: exact
    on the side of the image, relaxed on the side of the references. For small fields of view.
    """

    Parameters = SemiUnbalancedParameters
    parameters: SemiUnbalancedParameters

    def _dual(self, reference: ReferencePatches) -> SemiDual:
        return SemiDual(
            reference.patches,
            reference.weights,
            epsilon=2 * self.parameters.blur**2,
            rho=2 * self.parameters.reach**2,
        )

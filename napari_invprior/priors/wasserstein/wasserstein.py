"""Wasserstein patch prior: all patches of the image, at several scales, as in the references."""

from __future__ import annotations

from napari_invprior.priors.wasserstein.discrepancy import DiscrepancyParameters, PatchDiscrepancy
from napari_invprior.priors.wasserstein.reference_cloud import ReferencePatches
from napari_invprior.registry import register
from napari_invprior.transport.semi_discrete.semi_dual import SemiDual


class WassersteinParameters(DiscrepancyParameters):
    """Patches and scales."""


@register(
    kind="prior",
    name="wasserstein",
    title="Wasserstein patch prior",
    papers=("2109.12880", "2312.16611"),
    inputs=("references",),
    outputs=("prior", "maps"),
    needs_references=True,
)
class WassersteinPatchPrior(PatchDiscrepancy):
    """Sum over scales of the squared Wasserstein-2 distance between patch distributions.

    ``g(x) = sum_s W_2^2(1/N_s sum_i delta_{P_i x_s}, nu_s)``. For large fields of view whose
    statistics are those of the references. The paper's ``lambda`` (for ``|A x - y|^2``) is
    ``2 sigma^2 n weight`` with ``n`` image samples.

    Examples
    --------
    >>> import torch
    >>> from napari_invprior.jobs import run
    >>> from napari_invprior.priors.base import Reference
    >>> image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    >>> prior = WassersteinPatchPrior(WassersteinParameters(scales=1), ndim=2)
    >>> prior = run(prior.fit([Reference(image)]))
    >>> bool(prior.g(image[None]) < 1e-5)
    True
    """

    Parameters = WassersteinParameters
    parameters: WassersteinParameters
    balanced = True

    def _dual(self, reference: ReferencePatches) -> SemiDual:
        return SemiDual(reference.patches, reference.weights)

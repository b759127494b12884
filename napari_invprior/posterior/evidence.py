"""How much patches count together: each sample of the image about once, as it lies in many."""

from __future__ import annotations

import math
from collections.abc import Sequence

from napari_invprior.errors import InvalidInput
from napari_invprior.priors.base import Prior
from napari_invprior.priors.patchwise import PatchPrior

ONCE = 0.9
"""Share of one that every sample counts: overlapping patches are no independent witnesses. Found on
test crops; on a validation image a patchNR asks for 0.9 too, a mixture for 0.95
(docs/methods.md). Much less, and the images lose their hold; much more, and intervals are narrow.
"""


def counted_once(patch: Sequence[int]) -> int:
    """Rim with which nearly every sample lies in as many patches as inside, px.

    Without a rim those at the border lie in fewer, with a wide one in up to twice as many.
    """
    return (min(patch) - 1) // 2


def evidence_weight(prior: Prior, space: Sequence[int], rim: int) -> float:
    """Weight in `Objective` at which every patch counts ``ONCE / samples of a patch``.

    Parameters
    ----------
    space : sequence of int
        Shape of the image.
    rim : int
        Mirrored rim that the prior also sees, px.

    Raises
    ------
    InvalidInput
        If the prior is no density of patches.
    """
    if not (prior.is_density and isinstance(prior, PatchPrior)):
        raise InvalidInput(
            f"the prior {prior.name!r} is no density of patches: give the sampler's weight"
        )
    patches = math.prod(n + 2 * rim - p + 1 for n, p in zip(space, prior.patch, strict=True))
    per_sample = patches / (math.prod(space) * prior.joint_channels)
    return ONCE / math.prod(prior.patch) * per_sample

"""What is measured on each result of a study."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from napari_invprior.jobs import Job, Result, Stage, forward
from napari_invprior.numerics.metrics import psnr, ssim, without_rim
from napari_invprior.numerics.patches import PatchGrid, gather_patches, positions_inside
from napari_invprior.priors.base import Reference
from napari_invprior.reconstruct.case import Case
from napari_invprior.transport.semi_discrete.semi_dual import SemiDual

PATCHES = 2000
"""Random patches of a result, and of the references, between which the distance is computed."""
PATCH_EDGE = {2: 6, 3: 4}
ACCURACY = 0.01
"""Relative accuracy of the distance."""

Perceptual = Callable[[Tensor, Tensor], float]


def against_truth(image: Tensor, case: Case) -> dict[str, list[float]]:
    """PSNR, SSIM and, where its package is installed, LPIPS of each image; empty without a truth.

    Only planes have an LPIPS.
    """
    if case.truth is None:
        return {}
    pairs = [(image[i : i + 1], case.truth[i : i + 1]) for i in range(len(image))]
    found = {
        "psnr": [psnr(x, truth, case.rim) for x, truth in pairs],
        "ssim": [ssim(x, truth, case.rim) for x, truth in pairs],
    }
    distance = perceptual() if image.ndim == 4 and image.shape[1] in (1, 3) else None
    if distance is not None:
        found["lpips"] = [
            distance(without_rim(x.clamp(0, 1), case.rim), without_rim(truth, case.rim))
            for x, truth in pairs
        ]
    return found


@cache
def perceptual() -> Perceptual | None:
    """LPIPS with AlexNet where the package ``lpips`` and its weights are at hand, else None."""
    if importlib.util.find_spec("lpips") is None:
        return None
    import lpips  # type: ignore[import-not-found,unused-ignore]

    try:
        net: Any = lpips.LPIPS(net="alex", verbose=False)
    except Exception:  # its weights come from the network, which may not be there
        return None

    def distance(x: Tensor, truth: Tensor) -> float:
        """Of one pair (1, C, height, width) with values in [0, 1]."""
        with torch.no_grad():
            a, b = (v.float().expand(-1, 3, -1, -1) * 2 - 1 for v in (x, truth))
            return float(net(a, b))

    return distance


class PatchDistance:
    """How far the patches of an image are from those of the references; asks for no truth.

    The squared Wasserstein distance between random patches of both, less half of what two draws
    from the image, and two from the references, are apart. Without this, smooth images would win:
    two samples of a rich texture are further apart than a sample and its mean. Equal
    distributions give 0 up to the accident of the draw.

    Parameters
    ----------
    references : sequence of Reference
        Good examples.
    space : sequence of int
        Shape of the images to judge; a patch must fit into it.
    seed : int
        Seed of the draw.
    """

    def __init__(self, references: Sequence[Reference], space: Sequence[int], seed: int) -> None:
        shapes = [tuple(space), *(tuple(r.image.shape[1:]) for r in references)]
        self.edge = min(PATCH_EDGE[len(tuple(space))], *(min(s) for s in shapes))
        self._generator = torch.Generator().manual_seed(seed)
        images = [r.image for r in references]
        places = [self._places(r) for r in references]
        self.usable = bool(references) and sum(map(len, places)) > 0
        if self.usable:
            self._sites = self._draw(images, places)
            self._others = self._draw(images, places)
        self._own: float | None = None

    def _places(self, reference: Reference) -> Tensor:
        usable = torch.isfinite(reference.image).all(0)
        if reference.mask is not None:
            usable = usable & reference.mask
        return positions_inside(usable, (self.edge,) * usable.ndim)

    def _draw(self, images: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
        """`PATCHES` patches of images (C, *space) at the given grid positions, channel by channel.

        An image is drawn from as often as it has places.
        """
        counts = torch.tensor([float(len(p)) for p in places])
        chosen = torch.multinomial(counts, PATCHES, replacement=True, generator=self._generator)
        found = []
        for index in chosen.unique().tolist():
            image, allowed = images[index], places[index]
            mine = (int((chosen == index).sum()),)
            where = allowed[torch.randint(len(allowed), mine, generator=self._generator)]
            channel = torch.randint(len(image), mine, generator=self._generator)
            grid = PatchGrid(image.shape[1:], self.edge)
            found += [
                gather_patches(plane[None], grid, where[channel == c])
                for c, plane in enumerate(image)
            ]
        return torch.cat(found, 1).float().contiguous()

    def of(self, image: Tensor) -> Job:
        """Distance of an image (frames, C, *space); the `Result` is NaN without references."""
        if not self.usable:
            yield Result(math.nan)
            return
        count = PatchGrid(image.shape[2:], self.edge).count
        places = [torch.arange(count)] * len(image)
        points, again = self._draw(list(image), places), self._draw(list(image), places)
        if self._own is None:
            self._own = yield from forward(_transport(self._others, self._sites))
        cross = yield from forward(_transport(points, self._sites))
        within = yield from forward(_transport(again, points))
        yield Result(cross - (within + self._own) / 2)


def _transport(points: Tensor, sites: Tensor) -> Job:
    """The largest semi-dual value between two samples."""
    stage = Stage("patch distance", 6)
    value = math.nan
    for level, value in enumerate(SemiDual(sites).solve(points, ACCURACY), 1):
        yield stage.progress(min(level, stage.total), distance=value)
    yield Result(value)  # the last one is the dual itself; smoothed ones are no lower bounds

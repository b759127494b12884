"""Acceptance of the flows of Riesz discrepancies (sheet 2) and of halftoning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import gaussian_filter
from skimage.transform import resize
from torch import Tensor

from napari_invprior import jobs, registry
from napari_invprior.transport.riesz_flows import closed_forms as known
from napari_invprior.transport.riesz_flows.density import Density, density_of
from napari_invprior.transport.riesz_flows.discrepancy import Discrepancy, Target
from napari_invprior.transport.riesz_flows.halftone import HalftoneParameters, halftone
from napari_invprior.transport.riesz_flows.image_potential import ImagePotential
from napari_invprior.transport.riesz_flows.trajectory import Trajectory

pytestmark = pytest.mark.slow
Show = Callable[[str], None]


def flowed(name: str, start: Tensor, target: Target | None, **parameters: Any) -> Trajectory:
    method = registry.get("flow", name)
    movie: Trajectory = jobs.run(method.cls(method.parameters(**parameters)).run(start, target))
    return movie


def disc_figures(points: Tensor, time: float) -> tuple[float, float, float]:
    """Radial W1 / R, E|x|^2 / R^2 and |mean| / R against the law of r = 1 in the plane."""
    radius = known.radius(time, 1, 2)
    share = points.double().norm(dim=0).sort().values / radius
    middle = (torch.arange(len(share)).double() + 0.5) / len(share)
    expected = (1 - (1 - middle) ** 2).sqrt()  # the inverse of 1 - sqrt(1 - share^2)
    return (
        float((share - expected).abs().mean()), float(share.square().mean()),
        float(points.mean(1).norm()) / radius,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("backward", {"iterations": 1000, "plateau": 0, "batch": 100}),
        ("backward", {}),
        ("backward", {"iterations": 1000, "plateau": 0, "batch": 100, "residual": False}),
        ("forward", {}),
    ],
)
def test_networks_follow_the_disc(name: str, parameters: dict[str, Any], show: Show) -> None:
    """Check 4 of the sheet, at every step; the forward scheme is held to the same."""
    movie = flowed(name, torch.zeros(2, 1), None, tau=0.1, final_time=0.4, **parameters)
    for time, points in zip(movie.times.tolist()[1:], movie.points[1:], strict=True):
        distance, square, mean = disc_figures(points, time)
        show(
            f"{name} {parameters} t = {time:.1f}: radial W1/R {distance:.3f} (asked 0.05), "
            f"E|x|^2/R^2 {square:.3f} (0.667 +- 0.05), |mean|/R {mean:.3f} (0.12)"
        )
        assert distance <= 0.05
        assert square == pytest.approx(0.667, abs=0.05)
        assert mean <= 0.12


@pytest.mark.parametrize(("r", "d"), [(0.5, 2), (1.5, 2), (1.0, 3)])
def test_backward_steps_have_their_size(r: float, d: int, show: Show) -> None:
    """Against the exact recursion of implicit steps; graded steps for r < 1."""
    method = registry.get("flow", "backward")
    flow = method.cls(method.parameters(r=r, tau=0.3, final_time=0.9))
    movie = jobs.run(flow.run(torch.zeros(d, 1), None))
    scale = known.jko_scales(flow.schedule(), r)[-1] * known.unit_radius(r, d)
    expected = scale * known.mean_square(r, d) ** 0.5
    found = float(movie.points[-1].square().sum(0).mean()) ** 0.5
    show(f"backward r = {r:g}, d = {d}: rms radius {found:.4f}, exact {expected:.4f} (asked 8 %)")
    assert found == pytest.approx(expected, rel=0.08)


@pytest.fixture(scope="module")
def horse() -> Density:
    image = resize(skimage.data.horse().astype(float), (100, 122), anti_aliasing=True)
    return density_of(torch.from_numpy(image))


@pytest.mark.parametrize(
    ("name", "share"), [("particle", 0.2), ("forward", 0.4), ("backward", 0.6)]
)
def test_two_points_become_a_drawing(horse: Density, name: str, share: float, show: Show) -> None:
    target = ImagePotential(horse)
    start = torch.tensor([[-0.35, 0.35], [-0.45, 0.45]])
    movie = flowed(name, start, target)
    drawn, _ = Discrepancy(target, 1.0).value_and_grad(
        horse.draw(2000, torch.Generator().manual_seed(0), "independent")
    )
    first, last = movie.discrepancy[[0, -1]].tolist()
    show(
        f"{name}, preset fast, two points to the horse: discrepancy {first:.3g} -> {last:.3g}; "
        f"2000 independent draws have {drawn:.3g} (asked {share:g} of it)"
    )
    assert 0 < last < share * drawn, "a negative discrepancy would be a fault of the potential"
    assert float(movie.discrepancy.diff().max()) < 0.02 * float(movie.discrepancy[0])


def blurred_difference(pixels: Tensor, density: Density, sigma: float) -> float:
    """Root mean square of blurred dots less blurred image, over the mean of the image."""
    fine, shape = 4, density.mass.shape
    count, _ = np.histogramdd(
        (fine * (pixels.T.double() + 0.5)).numpy(), bins=[fine * n for n in shape],
        range=[(0, fine * n) for n in shape],
    )
    dots = gaussian_filter(count / count.sum(), fine * sigma)
    dots = dots.reshape(shape[0], fine, shape[1], fine).sum((1, 3))
    wanted = gaussian_filter(density.mass.numpy(), sigma)
    return float(np.sqrt(((dots - wanted) ** 2).mean()) / wanted.mean())


@pytest.mark.parametrize("name", ["camera", "coins"])
def test_halftone(name: str, show: Show) -> None:
    grey = getattr(skimage.data, name)()
    image = resize(grey, (128, 128 * grey.shape[1] // grey.shape[0]), anti_aliasing=True)
    density = density_of(torch.from_numpy(image), invert=name == "camera", blur=0, background=0)
    dots = jobs.run(halftone(density, HalftoneParameters(dots=2000)))
    figures: dict[str, list[float]] = {}
    for kind, pixels in (
        ("independent", None), ("stratified", None), ("halftone", dots),
    ):
        if pixels is None:
            points = density.draw(2000, torch.Generator().manual_seed(0), kind)  # type: ignore[arg-type]
            pixels = density.to_pixels(points)
        figures[kind] = [blurred_difference(pixels, density, sigma) for sigma in (2, 3, 5)]
        listed = ", ".join(f"{figure:.4f}" for figure in figures[kind])
        show(f"{name} as 2000 dots, {kind}: difference blurred by 2, 3, 5 px {listed}")
    for halftoned, strata, independent in zip(*reversed(figures.values()), strict=True):
        assert strata < 0.6 * independent
        assert halftoned < 0.25 * strata

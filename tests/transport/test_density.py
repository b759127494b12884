"""Images as densities: drawing, coordinates, exact potentials and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_invprior.errors import InvalidInput
from napari_invprior.numerics.hilbert import hilbert_order
from napari_invprior.numerics.spline import CubicSpline
from napari_invprior.transport.riesz_flows import image_potential
from napari_invprior.transport.riesz_flows.density import Density, density_of
from napari_invprior.transport.riesz_flows.discrepancy import Cloud, Discrepancy, mean_power
from napari_invprior.transport.riesz_flows.image_potential import GUARD, MARGIN, ImagePotential

SHAPES = pytest.mark.parametrize("shape", [(21, 32), (7, 10, 9)], ids=["2d", "3d"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def density(shape: tuple[int, ...]) -> Density:
    sizes = [1.0, 2.0, 1.5][: len(shape)]
    return Density(torch.rand(shape, generator=seeded()).square(), sizes)


@pytest.mark.parametrize("shape", [(16, 16), (8, 8, 8), (1, 1), (5, 13), (3, 9, 4)])
def test_hilbert_curve_meets_every_cell_once(shape: tuple[int, ...]) -> None:
    order = hilbert_order(shape)
    assert sorted(order.tolist()) == list(range(np.prod(shape)))
    if len({*shape}) == 1:
        path = np.stack(np.unravel_index(order, shape))
        assert np.abs(np.diff(path)).sum(0).max(initial=1) == 1, "from neighbour to neighbour"


@SHAPES
def test_spline_is_that_of_scipy(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape, generator=seeded(), dtype=torch.float64)
    sizes = torch.tensor(shape)[:, None] - 1
    at = torch.rand((len(shape), 200), generator=seeded(1), dtype=torch.float64) * sizes
    value, gradient = CubicSpline(image).value_and_grad(at)
    expected = ndimage.map_coordinates(image.numpy(), at.numpy(), order=3, mode="mirror")
    assert np.abs(value.numpy() - expected).max() < 1e-12
    for axis in range(len(shape)):
        step = torch.zeros_like(at)
        step[axis] = 1e-6
        inside = ((at > 1e-5) & (at < sizes - 1e-5)).all(0)
        ahead, behind = (CubicSpline(image).value_and_grad(at + s * step)[0] for s in (1, -1))
        slope = (ahead - behind) / 2e-6
        assert torch.allclose(slope[inside], gradient[axis, inside], atol=1e-6)


@SHAPES
def test_pixels_and_points_are_inverse(shape: tuple[int, ...]) -> None:
    made = density(shape)
    pixels = torch.rand((len(shape), 50), generator=seeded(), dtype=torch.float64) * 9
    assert torch.allclose(made.to_pixels(made.to_points(pixels)), pixels)
    corners = made.to_points(torch.stack([torch.full((len(shape),), -0.5),
                                          torch.tensor(shape) - 0.5], 1))
    assert torch.allclose(corners[:, 0], -corners[:, 1]), "the middle is 0"
    assert float((corners[:, 1] - corners[:, 0]).max()) == pytest.approx(1), "longest edge is 1"


@SHAPES
@pytest.mark.parametrize("kind", ["stratified", "independent"])
def test_draws_follow_the_density(shape: tuple[int, ...], kind: str) -> None:
    made, count = density(shape), 40_000
    cells = made.to_pixels(made.draw(count, seeded(3), kind)).round().long()
    index = torch.from_numpy(np.ravel_multi_index(tuple(cells.numpy()), shape))
    shares = torch.bincount(index, minlength=made.mass.numel()) / count
    wanted = made.mass.flatten()
    error = (shares - wanted).abs() * count
    limit = 2.0 if kind == "stratified" else 5 * (wanted * count).sqrt() + 3
    assert bool((error <= limit).all()), "a stratum cut by a pixel's border may fall either way"


def test_strata_are_less_noisy_than_independent_draws() -> None:
    made = density((21, 32))
    target = Discrepancy(ImagePotential(made), 1.0)
    figures = [
        np.mean([target.value_and_grad(made.draw(500, seeded(k), kind))[0] for k in range(5)])
        for kind in ("stratified", "independent")
    ]
    assert figures[0] < 0.2 * figures[1]


def test_no_draw_falls_where_there_is_no_mass() -> None:
    mass = torch.zeros(9, 9)
    mass[4, 4] = mass[0, 8] = 1
    made = Density(mass)
    pixels = made.to_pixels(made.draw(100, seeded())).round()
    assert bool(made.mass[tuple(pixels.long())].gt(0).all())
    assert int((pixels[0] == 4).sum()) == 50


def test_image_of_the_sheet() -> None:
    """Inverted, blurred, with the wide blurs: against SciPy's Gaussian on a 100 x 100 image."""
    image = torch.rand(100, 100, generator=seeded(), dtype=torch.float64)
    ink = (image.max() - image).numpy()
    wanted = ndimage.gaussian_filter(ink, 2.0) + 0.01 * sum(
        ndimage.gaussian_filter(ink, sigma, truncate=8) for sigma in (10, 20, 50)
    )
    found = density_of(image, blur=2.0).mass
    assert np.abs(found.numpy() / (wanted / wanted.sum()) - 1).max() < 1e-3


@SHAPES
@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_potential_is_that_of_very_many_points(shape: tuple[int, ...], r: float) -> None:
    made = density(shape)
    target, y = ImagePotential(made), made.draw(30_000, seeded(1))
    x = 1.3 * made.draw(30, seeded(2))  # some of them outside
    value, gradient = target.potential(x, r)
    expected, slope = mean_power(x, y, r)
    assert torch.allclose(value, expected, atol=2e-3)
    assert torch.allclose(gradient, slope, atol=8e-3)
    assert target.spread(r) == pytest.approx(float(target.potential(y, r)[0].mean()), rel=0.01)
    mean, away = target.radius()
    assert torch.allclose(mean, y.mean(1), atol=2e-3)
    assert away**2 == pytest.approx(float(y.var(1).sum()), rel=0.03)


@SHAPES
@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_far_potential_is_exact_too(
    shape: tuple[int, ...], r: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = density(shape)
    pixels = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).flatten(1)
    every = Cloud(made.to_points(pixels), made.mass.flatten())
    x = torch.randn((len(shape), 40), generator=seeded(), dtype=torch.float64) * 20
    value, gradient = every.potential(x, r)
    for cells in (10**6, 100):
        monkeypatch.setattr(image_potential, "FAR_CELLS", cells)
        found, slope = ImagePotential(made).potential(x, r)
        # cells lose their extent: their variance times half the curvature
        assert torch.allclose(found, value, rtol=3e-4)
        assert torch.allclose(slope, gradient, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("r", [0.5, 1.0, 1.5])
def test_potential_goes_on_smoothly_where_it_changes_its_way(r: float) -> None:
    made = density((21, 32))
    border = 20 + MARGIN - GUARD
    pixels = torch.tensor([[border - 1e-6, border + 1e-6], [16.0, 16.0]], dtype=torch.float64)
    value, gradient = ImagePotential(made).potential(made.to_points(pixels), r)
    # pixels are boxes on one side and points on the other: h^2 / 24 times the curvature, h = 1/32
    assert float(value[0]) == pytest.approx(float(value[1]), rel=1e-3)
    assert torch.allclose(gradient[:, 0], gradient[:, 1], atol=5e-3)


@pytest.mark.parametrize(
    ("shape", "exact"), [((8, 8), 0.5214054331647207), ((6, 6, 6), 0.6617071822671763)]
)
def test_spread_of_a_square_and_a_cube(shape: tuple[int, ...], exact: float) -> None:
    """The known mean distances of two points in them."""
    found = ImagePotential(Density(torch.ones(shape))).spread(1.0)
    assert found == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("size", [0.0, 0.3, 3.0, 300.0])
def test_nothing_is_gained_by_running_away(size: float) -> None:
    """A discrepancy is never negative, wherever the particles are."""
    made = density((21, 32))
    discrepancy = Discrepancy(ImagePotential(made), 1.0)
    x = made.draw(200, seeded())
    x[:, :10] += size * torch.randn((2, 10), generator=seeded(1), dtype=torch.float64)
    value, gradient = discrepancy.value_and_grad(x)
    assert value > 0
    outward = (gradient * x).sum(0)[:10][x[:, :10].norm(dim=0) > 1]
    assert bool((outward > 0).all()), "strays are drawn back"


def test_what_is_no_density_is_refused_with_advice() -> None:
    ramp = torch.arange(12.0).view(3, 4)
    cases = [
        (torch.ones(4, 4), {}, "1 everywhere: with dark pixels"),
        (torch.zeros(4, 4), {"invert": False}, "0 everywhere"),
        (ramp - 5, {"invert": False}, "down to -5: .* subtract the background"),
        (ramp / 0, {}, "NaN or infinite"),
        (torch.ones(4), {}, r"shape \(4,\): give 2 or 3 space axes"),
        (ramp, {"spacing": [1.0]}, "give 2 positive sizes"),
    ]
    for image, options, word in cases:
        with pytest.raises(InvalidInput, match=word):
            density_of(image, **options)
    with pytest.raises(InvalidInput, match="no value may be negative"):
        Density(ramp - 5)
    with pytest.raises(InvalidInput, match="at least one point"):
        Density(ramp).draw(0, seeded())


def test_constant_and_negative_images_have_a_use_where_they_make_sense() -> None:
    flat = density_of(torch.full((5, 6), 3.0), invert=False)
    assert torch.allclose(flat.mass, torch.full((5, 6), 1 / 30).double())
    assert bool((density_of(torch.arange(-6.0, 6.0).view(3, 4)).mass >= 0).all())
    narrow = density_of(torch.arange(300.0).view(1, 300))
    assert narrow.draw(10, seeded()).shape == (2, 10)

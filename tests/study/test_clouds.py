"""Densities, typical places, comparisons: against direct sums and under the null."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from napari_invprior import jobs
from napari_invprior.errors import Cancelled, InvalidInput
from napari_invprior.priors.base import Reference
from napari_invprior.samples import binary_volume
from napari_invprior.study.generated import GenerateParameters, generate
from napari_invprior.study.halftone_quality import seen_from_afar
from napari_invprior.study.point_density import PointDensityParameters, point_density
from napari_invprior.study.sameness import SamenessParameters, same_patches, same_points
from napari_invprior.study.typicality import Typicality, TypicalityParameters, typicality
from napari_invprior.transport.riesz_flows.density import Density


def texture(seed: int, shape: tuple[int, ...] = (64, 64), width: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(binary_volume(shape, seed, width=width))[None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- density of points


def test_density_is_the_direct_sum_and_counts_the_points() -> None:
    points = 20 + 4 * torch.randn((2, 200), generator=seeded(), dtype=torch.float64)
    found = jobs.run(point_density(points, (40, 44), PointDensityParameters(scale=2.5)))
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(44), indexing="ij")).reshape(2, -1)
    squared = cdist(grid.T, points.numpy().T, "sqeuclidean")
    direct = np.exp(-squared / (2 * 2.5**2)).sum(1) / (2 * np.pi * 2.5**2)
    assert np.allclose(found.values.numpy().ravel(), direct, atol=0.02 * direct.max())
    assert float(found.values.sum()) == pytest.approx(200, rel=0.02)


@pytest.mark.parametrize("kernel", ["gauss", "laplace"])
def test_anisotropic_volumes_still_count(kernel: str) -> None:
    points = torch.tensor([[10.0, 12.0], [20.0, 22.0], [20.0, 18.0]])
    chosen = PointDensityParameters(kernel=kernel, scale=3.0 if kernel == "gauss" else 1.5)
    found = jobs.run(point_density(points, (22, 41, 41), chosen, spacing=(2.0, 1.0, 1.0)))
    assert float(found.values.sum()) == pytest.approx(2, rel=0.05)


def test_one_point_another_space_and_a_stop() -> None:
    found = jobs.run(point_density(torch.zeros(2, 1) + 5, (11, 11), PointDensityParameters()))
    assert found.values.argmax() == 60
    with pytest.raises(InvalidInput, match="3 coordinates, the grid has 2"):
        jobs.run(point_density(torch.zeros(3, 1), (5, 5), PointDensityParameters()))
    with pytest.raises(Cancelled):
        jobs.run(point_density(torch.zeros(2, 1), (5, 5), PointDensityParameters(),
                               should_stop=lambda: True))


# ---- typical places


@pytest.mark.parametrize("shape", [(40, 44), (14, 15, 16)])
def test_typicality_is_the_direct_sum(shape: tuple[int, ...]) -> None:
    image, reference = texture(1, shape), texture(0, shape)
    chosen = TypicalityParameters(patch_size=3, reference_patches=200, scale=0.3)
    found: Typicality = jobs.run(typicality(image, [Reference(reference)], chosen))
    assert found.values.shape == shape and found.scale == pytest.approx(0.3)
    own = jobs.run(typicality(reference, [Reference(reference)], chosen))
    assert bool((own.values <= 1e-6).all())
    assert found.usual == pytest.approx(float(own.values.mean()), abs=0.3)
    dim = 3 ** len(shape)
    place = tuple(n // 2 for n in shape)
    window = image[0][tuple(slice(p - 1, p + 2) for p in place)].flatten()
    grid = reference[0]
    for axis in range(len(shape)):
        grid = grid.unfold(axis, 3, 1)
    every = grid.reshape(-1, dim)
    kernel = torch.exp(-(every - window).square().sum(1) / (2 * 0.09 * dim))
    assert float(found.values[place]) == pytest.approx(float(kernel.mean().log()), abs=0.35)


def test_a_foreign_spot_is_seen_and_nan_stays_local() -> None:
    image = texture(1)
    image[:, 20:32, 20:32] = 3.0
    image[:, 50, 50] = torch.nan
    found = jobs.run(typicality(image, [Reference(texture(0))], TypicalityParameters()))
    assert float(found.values[26, 26]) < float(found.values.nanmedian()) - 2
    broken = ~found.values.isfinite()
    assert int(broken.sum()) == 36 and bool(broken[50, 50])


def test_bad_references_are_refused() -> None:
    job = typicality(texture(1), [Reference(texture(0, (14, 14, 14)))], TypicalityParameters())
    with pytest.raises(InvalidInput, match="same axes and channels"):
        jobs.run(job)
    small = typicality(texture(1), [Reference(texture(0, (7, 7)))], TypicalityParameters())
    with pytest.raises(InvalidInput, match="at least 20 are needed"):
        jobs.run(small)
    tiny = typicality(texture(1, (5, 5)), [Reference(texture(0))], TypicalityParameters())
    with pytest.raises(InvalidInput, match="smaller than a patch"):
        jobs.run(tiny)


# ---- comparisons


def test_p_values_of_one_material_are_not_small_and_of_two_they_are() -> None:
    chosen = SamenessParameters(permutations=99, most=300)
    values = []
    for k in range(30):
        first, second = Reference(texture(2 * k)), Reference(texture(2 * k + 1))
        values.append(same_patches([first], [second], chosen)[0].p_value)
    assert np.mean(np.array(values) <= 0.05) < 0.25
    other, cells = same_patches(
        [Reference(texture(0))], [Reference(texture(1, width=3.0))], chosen
    )
    assert other.p_value <= 0.01 and cells == (16, 16)


def test_points_with_large_coordinates_compare() -> None:
    chosen = SamenessParameters(permutations=99)
    x, y = torch.randn((2, 3, 60), generator=seeded(3), dtype=torch.float64)
    near, far = same_points(x, y, chosen), same_points(x + 1e5, y + 1e5, chosen)
    assert far.p_value == near.p_value
    assert far.statistic == pytest.approx(near.statistic, abs=1e-6)
    assert same_points(x, y + 1, chosen).p_value <= 0.01
    values = []
    for k in range(30):
        pair = torch.randn((2, 3, 60), generator=seeded(100 + k), dtype=torch.float64)
        values.append(same_points(pair[0], pair[1], chosen).p_value)
    assert np.mean(np.array(values) <= 0.05) < 0.15
    with pytest.raises(InvalidInput, match="one space"):
        same_points(x, y[:2], chosen)
    with pytest.raises(InvalidInput, match="at least 10"):
        same_points(x[:, :9], y, chosen)


def test_images_that_cannot_be_compared_are_refused() -> None:
    chosen = SamenessParameters()
    with pytest.raises(InvalidInput, match="differ in axes"):
        same_patches([Reference(texture(0))], [Reference(texture(0, (14, 14, 14)))], chosen)
    with pytest.raises(InvalidInput, match="larger region"):
        same_patches([Reference(texture(0, (7, 7)))], [Reference(texture(0))], chosen)
    one_cell = SamenessParameters(cell=100)
    with pytest.raises(InvalidInput, match="1 cells"):
        same_patches([Reference(texture(0))], [Reference(texture(1))], one_cell)


# ---- patches and textures, halftones


def test_generated_patches_and_texture() -> None:
    chosen = GenerateParameters(patch_size=4, particles=80, steps=30, patches=10, texture=(12, 16))
    found = jobs.run(generate([Reference(texture(0))], chosen))
    assert found.patches.shape == (10, 1, 4, 4) and found.texture.shape == (1, 12, 16)
    assert found.metrics["curve"][-1][1] < found.metrics["curve"][0][1]
    assert {"distance_generated", "distance_real"} <= found.metrics.keys()
    with pytest.raises(InvalidInput, match="nothing to generate"):
        jobs.run(generate([Reference(texture(0))], GenerateParameters(patches=0)))


def test_dots_between_pixels_are_shared_by_them() -> None:
    density = Density(torch.ones(4, 4))
    seen = seen_from_afar(torch.tensor([[1.0, 2.5], [2.0, -3.0]]), density)
    assert float(seen.sum()) == pytest.approx(1)
    assert float(seen[1, 2]) == pytest.approx(0.5) and float(seen[2, 0]) == pytest.approx(0.25)

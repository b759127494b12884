"""Tomography as an operator of the engine: shapes, angles, units, refusals, placement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_invprior import recipes
from napari_invprior.errors import InvalidInput
from napari_invprior.geometry import Geometry
from napari_invprior.image import Image
from napari_invprior.io.arrays import image_from_array
from napari_invprior.jobs import Message
from napari_invprior.numerics.metrics import psnr
from napari_invprior.parameters import validate
from napari_invprior.phantoms import ellipses, foam
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.piece import representative_piece
from napari_invprior.physics.tomography import Tomography, TomographyParameters
from napari_invprior.physics.transmission import TransmissionNoise, TransmissionParameters
from napari_invprior.physics.unobserved import Masked
from napari_invprior.recipes.check import check_recipe
from napari_invprior.recipes.model import Recipe
from napari_invprior.recipes.prepare import Problem, prepare
from napari_invprior.reconstruct.tiles import solve_within_memory
from napari_invprior.reconstruct.total_variation import (
    TotalVariation,
    TotalVariationParameters,
    total_variation,
)


def physics(ndim: int = 2, **options: Any) -> Tomography:
    return Tomography(validate(TomographyParameters, options), ndim)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array)[None, None]


def sinogram(array: np.ndarray, **options: Any) -> np.ndarray:
    return physics(array.ndim, **options).A(tensor(array))[0, 0].numpy()


def prepared(
    data: np.ndarray, references: dict[str, np.ndarray], **changes: Any
) -> tuple[Problem, list[str]]:
    """The problem and the messages of a recipe on arrays."""
    arrays = {name: image_from_array(a, name=name) for name, a in references.items()}
    arrays["data"] = image_from_array(data, name="data")
    recipe = {
        "observation": {"layer": "data"},
        "references": [{"layer": name} for name in references if name != "truth"],
        "physics": {"kind": "tomography", "angle_count": 60},
        "noise": {"kind": "gaussian", "sigma": 0.01},
        "prior": None,
        "solver": {"kind": "total_variation"},
    } | changes
    texts, problem = [], None
    for item in prepare(Recipe.parse(recipe), arrays):
        if isinstance(item, Message):
            texts.append(item.text)
        else:
            problem = item
    assert problem is not None
    return problem, texts


# --- angles -------------------------------------------------------------------------------------


def test_listed_angles_in_degrees_and_radians_agree_and_say_so() -> None:  # row 23
    degrees = tuple(float(a) for a in range(0, 180, 10))
    in_degrees = physics(angles=degrees)
    in_radians = physics(angles=tuple(np.deg2rad(degrees).tolist()))
    assert in_degrees.angles == pytest.approx(in_radians.angles)
    assert in_degrees.angles == pytest.approx(physics(angle_count=18).angles)
    data = in_degrees.A(tensor(ellipses(32)))
    assert "degrees" in in_degrees.inspect(data).messages[0].text
    assert "radians" in in_radians.inspect(data).messages[0].text
    odd = physics(angles=degrees, angle_unit="radians").inspect(data).messages[0]
    assert odd.level == "warning" and "turns" in odd.text


def test_unsorted_angles_are_harmless_and_duplicates_are_told() -> None:  # row 23
    image = tensor(ellipses(32))
    order = np.random.default_rng(0).permutation(18)
    mixed = physics(angles=tuple(float(10 * a) for a in order), angle_unit="degrees")
    assert torch.allclose(mixed.A(image), physics(angle_count=18).A(image)[:, :, order], atol=1e-6)
    assert mixed.inspect(mixed.A(image)).messages == ()
    double = physics(angles=(0.0, 10.0, 10.0, 20.0), angle_unit="degrees")
    assert "1 of 4 angles" in double.inspect(double.A(image)).messages[0].text


@pytest.mark.parametrize("suffix", ["npy", "npz", "txt", "csv"])
def test_angles_come_from_files(suffix: str, tmp_path: Any) -> None:
    angles = np.arange(0, 180, 3.0)
    path = tmp_path / f"angles.{suffix}"
    write = {"npy": np.save, "npz": np.savez}.get(suffix, np.savetxt)
    write(path, angles)
    problem, _ = prepared(
        sinogram(foam(64), angle_count=60), {"good": foam(64, 1)},
        physics={"kind": "tomography", "angle_array": {"path": str(path)}},
    )
    assert problem.physics is not None
    assert problem.physics.angles == pytest.approx(np.deg2rad(angles))  # type: ignore[attr-defined]


# --- shapes and refusals ------------------------------------------------------------------------


def test_a_wrong_number_of_rows_is_refused_with_both_numbers() -> None:  # row 23
    with pytest.raises(InvalidInput, match="59 rows but the scan 60 angles"):
        physics(angle_count=60).in_shape((59, 64))
    with pytest.raises(InvalidInput, match="transposed"):
        physics(angle_count=60).in_shape((64, 60))
    with pytest.raises(InvalidInput, match="64 bins but the detector 70"):
        physics(angle_count=60, detector_count=70).in_shape((60, 64))


def test_the_detector_covers_a_chosen_image_and_takes_the_bins_of_data() -> None:
    operator = physics(angle_count=10, image_size=32)
    assert operator.out_shape((32, 32)) == (10, 46)
    assert operator.in_shape((10, 64)) == (32, 32)
    bound = operator.bound_to((10, 64))
    assert bound.out_shape((32, 32)) == (10, 64)
    assert bound.A(torch.ones(1, 1, 32, 32)).shape == (1, 1, 10, 64)
    with pytest.raises(InvalidInput, match="image_size"):
        operator.out_shape((30, 32))


def test_a_source_inside_the_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="half of its diagonal"):
        physics(geometry="fan", source_to_centre=20).A(torch.ones(1, 1, 32, 32))
    with pytest.raises(InvalidInput, match="before the rotation axis"):
        physics(geometry="fan", source_to_centre=200, source_to_detector=100)


FIELDS = TomographyParameters.model_fields


@given(
    options=st.fixed_dictionaries(
        {
            "geometry": st.sampled_from(["parallel", "fan"]),
            "angle_count": st.sampled_from([1, 2, 7, 20_000]),
            "angle_start": st.sampled_from([-360.0, 0.0, 360.0]),
            "angle_range": st.sampled_from([1e-9, 180.0, 3600.0]),
            "angles": st.sampled_from([None, (0.0,), (1e300, -4.0), (0.0, 0.0)]),
            "angle_unit": st.sampled_from(["auto", "degrees", "radians"]),
            "detector_count": st.sampled_from([None, 1, 33, 16_384]),
            "detector_spacing": st.sampled_from([None, 0.05, 1.0, 100.0]),
            "centre": st.sampled_from([-8192.0, 0.0, 8192.0]),
            "image_size": st.sampled_from([None, 1, 16_384, (3, 5)]),
            "pixel_size": st.sampled_from([None, 1e-9, 1e6]),
            "source_to_centre": st.sampled_from([1e-9, 40.0, 1e7]),
            "source_to_detector": st.sampled_from([1e-9, 60.0, 1e7]),
            "filter": st.sampled_from(["hann", "shepp-logan", "ram-lak"]),
            "cutoff": st.sampled_from([1e-9, 1.0]),
        }
    ),
    space=st.sampled_from([(8, 8), (1, 1), (9, 7), (3, 5)]),
)
def test_every_combination_of_bounds_runs_or_is_refused(
    options: dict[str, Any], space: tuple[int, int]
) -> None:
    assert set(options) == set(FIELDS) - {"angle_array"}
    try:
        operator = physics(**options)
        fitting = operator.fitting_shape(space)
        data = operator.out_shape(fitting)
    except InvalidInput:
        return
    if data[0] * data[1] > 200_000:  # hundreds of megabytes: allowed, but not here
        return
    x = torch.rand(1, 1, *fitting)
    try:
        y = operator.A(x)
    except InvalidInput:
        return
    assert tuple(y.shape[2:]) == data
    assert torch.isfinite(y).all()
    assert operator.A_adjoint(y).shape == x.shape
    assert torch.isfinite(operator.start(y)).all()


# --- lengths, units, noise ----------------------------------------------------------------------


def test_a_unit_image_gives_data_of_about_one() -> None:
    y = physics(angle_count=4).A(torch.ones(1, 1, 50, 50))
    assert float(y[0, 0, 0, 25]) == pytest.approx(1, abs=1e-5)
    y = physics(angle_count=4, pixel_size=0.25).A(torch.ones(1, 1, 50, 50))
    assert float(y[0, 0, 0, 25]) == pytest.approx(12.5, abs=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1000.0, 2000.0), (0.2, 3.0)])
def test_observed_and_simulated_data_are_scaled_alike(low: float, high: float) -> None:
    """Data of an image in any unit, measured or simulated, give the same normalised problem."""
    values = low + (high - low) * foam(64, 3)
    reference = low + (high - low) * foam(64, 4)
    measured, _ = prepared(
        sinogram(values, angle_count=60), {"good": reference, "truth": values},
        truth={"layer": "truth"},
    )
    simulated, _ = prepared(
        values, {"good": reference}, observation={"simulate_from": {"layer": "data"}},
        noise={"kind": "gaussian", "sigma": 0.0},
    )
    assert measured.y is not None and simulated.y is not None
    assert measured.scale[0] == pytest.approx(min(low, 0.0), abs=0.01 * (high - low))
    span = [p.scale[1] - p.scale[0] for p in (measured, simulated)]
    assert span[0] == pytest.approx(span[1], rel=0.02)
    assert torch.allclose(measured.y * span[0], simulated.y * span[1], atol=0.02 * (high - low))
    assert measured.truth is not None and measured.physics is not None
    assert torch.allclose(measured.physics.A(measured.truth), measured.y, atol=1e-4)


@pytest.mark.parametrize("low", [0.0, -500.0])
def test_a_simulated_observation_comes_back_through_a_file(low: float, tmp_path: Any) -> None:
    values = (low + 1500.0 * foam(64, 3)).astype(np.float32)
    problem, _ = prepared(values, {"good": values},
                          observation={"simulate_from": {"layer": "data"}})
    assert problem.observation is not None
    again, _ = prepared(problem.observation.array[0, 0], {"good": values})
    assert again.y is not None and problem.y is not None
    assert torch.allclose(again.y, problem.y, atol=1e-4)
    assert again.scale == problem.scale


def test_the_result_is_in_the_units_of_the_image() -> None:
    attenuation = (0.02 * ellipses(64, 3)).astype(np.float32)
    data = sinogram(attenuation, angle_count=60, pixel_size=0.5)
    arrays = {"data": image_from_array(data, name="data"),
              "good": image_from_array((0.02 * ellipses(64, 4)).astype(np.float32), name="good")}
    recipe = {
        "observation": {"layer": "data"},
        "references": [{"layer": "good", "dtype_range": [0, 0.02]}],
        "physics": {"kind": "tomography", "angle_count": 60, "pixel_size": 0.5},
        "noise": {"kind": "gaussian", "sigma": 1.0},
        "prior": None, "solver": {"kind": "total_variation", "weight": 2.0},
    }
    result = recipes.execute(recipe, arrays=arrays).layers[0].array
    assert psnr(torch.from_numpy(result / 0.02), torch.from_numpy(attenuation / 0.02)) > 25


def test_without_references_the_range_is_that_of_the_first_image() -> None:
    problem, texts = prepared(sinogram(7 * foam(64, 3), angle_count=60), {})
    assert problem.scale[0] == 0
    assert problem.scale[1] == pytest.approx(7 * 0.9, rel=0.25)
    assert any("assumed to span" in text for text in texts)


def test_a_reference_in_another_unit_is_told() -> None:
    _, texts = prepared(sinogram(foam(64, 3), angle_count=60), {"good": 500 * foam(64, 4)})
    assert not any("lies outside" in text for text in texts)  # 0 is among the reference's values
    _, texts = prepared(sinogram(500 * foam(64, 3), angle_count=60), {"good": foam(64, 4)})
    assert any("lies outside" in text for text in texts)


def test_dead_bins_become_unobserved_and_check_shows_them() -> None:  # row 25
    data = sinogram(foam(96, 3), angle_count=60)
    data[:, 40] = 0
    problem, texts = prepared(data, {"good": foam(96, 4)})
    assert isinstance(problem.physics, Masked)
    assert problem.physics.start_name == "fbp"
    assert any("40" in text and "unobserved" in text for text in texts)
    arrays: dict[str, Image] = {"data": image_from_array(data, name="data")}
    report = check_recipe(
        Recipe.parse({
            "observation": {"layer": "data"},
            "physics": {"kind": "tomography", "angle_count": 60},
            "prior": None, "solver": {"kind": "total_variation"},
        }),
        arrays,
    )
    assert any("40" in text for text in report["messages"])
    assert report["adjoint_mismatch"] < 1e-10
    truth = tensor(foam(96, 3))
    assert problem.y is not None
    found = total_variation(problem.y, problem.physics, 1e-5, 1.0, iterations=60)
    assert psnr(found, truth) > 24


def test_transmission_noise_is_that_of_the_sheet() -> None:
    """``sum N0 exp(-mu z) + N0 exp(-mu y) mu z``; bins without photons get 0.1 counts."""
    noise = TransmissionNoise(TransmissionParameters(photons=4096, attenuation=81.35858))
    z = torch.tensor([[[[0.01, 0.05]]]], dtype=torch.float64)
    y = torch.tensor([[[[0.02, 0.04]]]], dtype=torch.float64)
    mu = 81.35858
    expected = (4096 * (-mu * z).exp() + 4096 * (-mu * y).exp() * mu * z).sum()
    assert float(noise.nll(z, y)) == pytest.approx(float(expected))
    dark = noise.simulate(torch.full((1, 1, 4, 4), 5.0), torch.Generator().manual_seed(0))
    assert torch.allclose(dark, torch.tensor(float(np.log(40960) / mu)))
    assert torch.isfinite(noise.std(dark)).all()
    assert torch.isfinite(noise.nll_grad(torch.full((1, 1, 2, 2), -1e6), dark[..., :2, :2])).all()


# --- placement, pieces, tiles -------------------------------------------------------------------


def test_pixels_have_the_size_of_a_bin_at_the_axis() -> None:
    data = Geometry((5.0, 1.0, 0.5), (0.0, 10.0, 20.0))
    grid = physics(3).grid(data)
    assert grid.scale == (5.0, 0.5, 0.5)
    assert grid.translate == (0.0, 10.0, 20.0)
    grid = physics(detector_spacing=0.5).grid(Geometry((1.0, 0.5), (0.0, 0.0)))
    assert grid.scale == (1.0, 1.0)
    assert grid.translate == pytest.approx((0.0, 0.25))
    covering = physics(image_size=32).grid(Geometry((1.0, 1.0), (0.0, 0.0)))
    assert covering.translate == pytest.approx((0.0, (46 - 32) / 2))


def test_pieces_and_tiles_cut_slices_only() -> None:
    volume = np.stack([ellipses(24, seed) for seed in range(20)])
    operator = physics(3, angle_count=20)
    y = operator.A(tensor(volume))
    piece = representative_piece(y, operator, 24 * 24 * 8)
    assert piece.image_shape == (8, 24, 24)
    with pytest.raises(InvalidInput, match="slices only"):
        operator.restricted((slice(0, 4), slice(0, 10), slice(0, 24)))
    noise = GaussianNoise(GaussianParameters(sigma=0.01))
    solver = TotalVariation(TotalVariationParameters(iterations=30))
    images = []
    for memory in (10**9, 240 * 24 * 24 * 9):
        events = list(solve_within_memory(
            solver, y, operator, noise, None, memory=memory, weight=1.0
        ))
        images.append(events[-1].value)  # type: ignore[union-attr]
    assert any(isinstance(e, Message) and "tiles" in e.text for e in events)
    assert float((images[0] - images[1]).norm()) < 0.02 * float(images[0].norm())

"""Laws that every registered prior that learns obeys, in 2D and 3D."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.errors import InvalidInput
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Measurement, Prior, Reference
from napari_invprior.priors.data_networks.base import DataNetworkPrior
from napari_invprior.priors.drawn import DrawingPrior, DrawsImages
from napari_invprior.priors.patchwise import PatchPotential

QUICK: dict[str, dict[str, Any]] = {
    "patchnr": {"hidden": 16, "blocks": 2, "steps": 60, "batch": 128},
    "gmm": {"components": 4, "steps": 4},
    "wasserstein": {"reference_patches": 100},
    "adversarial": {"steps": 200, "width": 8, "learning_rate": 3e-3},
    "sinkhorn": {"reference_patches": 100, "blur": 0.1},
    "semi_unbalanced": {"reference_patches": 100, "blur": 0.1},
    "pca_gmm": {"components": 4, "rank": 8, "steps": 4},
    "wppnet": {"reference_patches": 100, "steps": 3, "tile": 8, "tiles": 2},
    "wppflow": {"reference_patches": 100, "steps": 3, "centre_steps": 2, "tile": 8, "tiles": 2},
    "conditional_mmd": {
        "pairs": 150, "centre_steps": 2, "networks": 1, "steps": 3, "first_flow": 2, "batch": 8,
    },
}
"""Parameters that make a fit take a second."""

LONG: dict[str, dict[str, Any]] = {
    "patchnr": {"steps": 50}, "gmm": {"steps": 50}, "adversarial": {"steps": 150},
}
"""Parameters of a fit that can be stopped half-way."""

PRIORS = [
    pytest.param(method, ndim, id=f"{method.name}-{ndim}d")
    for method in registry.methods("prior")
    for ndim in method.dimensions
    if method.needs_references
]
"""What learns; the others have tests of their own."""


def texture(ndim: int, seed: int = 0, channels: int = 1) -> torch.Tensor:
    """A smooth random field in [0, 1]: (C, *space)."""
    generator = torch.Generator().manual_seed(seed)
    space = (48, 47) if ndim == 2 else (17, 18, 16)
    x = torch.randn((channels, *space), generator=generator)
    for axis in range(1, ndim + 1):
        x = x + x.roll(1, axis) + 0.5 * x.roll(2, axis)
    return (x - x.min()) / (x.max() - x.min())


def measurement(prior: Prior) -> Measurement:
    """Coarse data of another image of the material."""
    physics = SuperResolution(SuperResolutionParameters(factor=2, blur_sigma=0.5), prior.ndim)
    x = texture(prior.ndim, seed=9, channels=prior.channels)
    size = physics.fitting_shape(x.shape[1:])
    x = x[(slice(None), *(slice(0, n) for n in size))][None]
    return Measurement(physics.A(x), physics, GaussianNoise(GaussianParameters(sigma=0.02)))


def fit(prior: Any, references: list[Reference], **options: Any) -> jobs.Job:
    """`Prior.fit`, with data for the priors that learn from them or for their operator."""
    if isinstance(prior, DataNetworkPrior | DrawingPrior):
        options["measurement"] = measurement(prior)
    job: jobs.Job = prior.fit(references, **options)
    return job


def fitted(method: registry.Method, ndim: int, channels: int = 1, **options: Any) -> Any:
    parameters = method.parameters(patch_size=4 if ndim == 2 else 3, **QUICK[method.name] | options)
    prior = method.cls(parameters, ndim=ndim, channels=channels)
    jobs.run(fit(prior, [Reference(texture(ndim, channels=channels))], seed=1))
    return prior


@pytest.fixture(scope="module")
def priors() -> dict[tuple[str, int], Any]:
    return {}


@pytest.fixture
def prior(
    request: pytest.FixtureRequest, priors: dict[tuple[str, int], Any]
) -> Any:
    method, ndim = request.param
    if (method.name, ndim) not in priors:
        priors[method.name, ndim] = fitted(method, ndim)
    return priors[method.name, ndim]


def drawn(prior: Any, count: int = 2, **options: Any) -> torch.Tensor:
    """Images (count, C, *space) that a prior draws for the data of `measurement`."""
    given, images = measurement(prior), []
    assert given.y is not None
    jobs.run(
        prior.draws(given.y, given.physics, count, **options),
        lambda event: images.append(event.image) if isinstance(event, jobs.Sample) else None,
    )
    return torch.stack(images)


def answer(prior: Prior, x: torch.Tensor) -> torch.Tensor:
    """What a prior has to say: its potential of the images, or images that it draws."""
    return prior.g(x) if prior.has_gradient else drawn(prior)


EACH = pytest.mark.parametrize(
    "prior", [pytest.param(p.values, id=p.id) for p in PRIORS], indirect=True
)
WITH_GRADIENT = [p for p in PRIORS if p.values[0].cls.has_gradient]  # type: ignore[union-attr,attr-defined]
EACH_GRADIENT = pytest.mark.parametrize(
    "prior", [pytest.param(p.values, id=p.id) for p in WITH_GRADIENT], indirect=True
)
EACH_DRAWING = pytest.mark.parametrize(
    "prior",
    [pytest.param(p.values, id=p.id) for p in PRIORS if hasattr(p.values[0].cls, "draws")],  # type: ignore[union-attr]
    indirect=True,
)


@EACH_GRADIENT
def test_gradient_is_the_derivative(prior: Prior) -> None:
    x = texture(prior.ndim, seed=5)[None].contiguous()
    gradient = prior.grad(x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    step = 5e-4
    difference = (prior.g(x + step * direction) - prior.g(x - step * direction)) / (2 * step)
    slope = float((gradient * direction).sum())
    assert float(difference) == pytest.approx(slope, rel=0.02)


@EACH_GRADIENT
def test_batches_agree_with_single_images(prior: Prior) -> None:
    x = torch.stack([texture(prior.ndim, seed=5), texture(prior.ndim, seed=6)])
    together = prior.g(x)
    alone = torch.cat([prior.g(x[:1]), prior.g(x[1:])])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-4)
    assert torch.allclose(prior.grad(x)[1:], prior.grad(x[1:]), rtol=1e-3, atol=1e-4)


@EACH_GRADIENT
def test_random_grids_and_draws_are_unbiased(prior: Prior) -> None:
    if not isinstance(prior, PatchPotential):
        return  # a discrepancy is no mean over patches: tests/priors/test_discrepancy.py
    x = texture(prior.ndim, seed=5)[None]
    full = prior.grad(x)
    generator = torch.Generator().manual_seed(0)
    for draw in (
        lambda: prior.subset_value_and_grad(x, generator),
        lambda: prior.drawn_value_and_grad(x, 300, generator),
    ):
        samples = torch.stack([draw()[1] for _ in range(150)])
        error = (samples.mean(0) - full).abs()
        standard = samples.std(0) / len(samples) ** 0.5
        inside = error <= 3 * standard + 1e-6 * float(full.abs().max())
        assert float(inside.float().mean()) > 0.98


@EACH
def test_state_round_trip_is_exact(prior: Prior) -> None:
    again = type(prior)(prior.parameters, ndim=prior.ndim, channels=prior.channels)
    assert not again.is_fitted
    again.load_state({name: tensor.clone() for name, tensor in prior.state().items()})
    x = texture(prior.ndim, seed=7)[None]
    assert again.is_fitted
    assert torch.equal(answer(again, x), answer(prior, x))
    if prior.has_gradient:
        assert torch.equal(again.grad(x), prior.grad(x))


@EACH
def test_bad_states_are_refused_by_name(prior: Prior) -> None:
    good = prior.state()
    name = max(good, key=lambda n: (good[n].is_floating_point(), good[n].ndim, good[n].numel()))
    for bad in (
        good | {name: torch.full_like(good[name], torch.nan)},
        good | {name: good[name].flatten()[:-1]},
        {n: t for n, t in good.items() if n != name},
    ):
        again = type(prior)(prior.parameters, ndim=prior.ndim, channels=prior.channels)
        with pytest.raises(InvalidInput, match=name):
            again.load_state(bad)
        assert not again.is_fitted


@EACH_GRADIENT
def test_plausible_images_have_the_smaller_potential(prior: Prior) -> None:
    x = texture(prior.ndim, seed=8)[None]
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert float(prior.g(x)) < float(prior.g(noisy))
    assert bool(torch.isfinite(prior.g(torch.zeros_like(x))).all())
    assert bool(torch.isfinite(prior.grad(torch.zeros_like(x))).all())


@pytest.mark.parametrize(("method", "ndim"), PRIORS)
def test_same_seed_same_prior(method: registry.Method, ndim: int) -> None:
    x = texture(ndim, seed=7)[None]
    assert torch.equal(answer(fitted(method, ndim), x), answer(fitted(method, ndim), x))


@pytest.mark.parametrize(("method", "ndim"), PRIORS)
@pytest.mark.parametrize("channels", ["separate", "joint"])
def test_channels(method: registry.Method, ndim: int, channels: str) -> None:
    parameters = method.parameters(
        patch_size=3, channels=channels, **QUICK[method.name]
    )
    prior = method.cls(parameters, ndim=ndim, channels=2)
    found: list[jobs.Event] = []
    jobs.run(fit(prior, [Reference(texture(ndim, channels=2))], seed=1), found.append)
    shown = [event.array for event in found if isinstance(event, jobs.Preview)]
    assert shown, "however short, a training ends with generated patches to look at"
    assert shown[-1].shape[1:] == (2 if channels == "joint" else 1, *prior.patch)
    x = texture(ndim, seed=3, channels=2)[None]
    assert prior.dim == 3**ndim * (2 if channels == "joint" else 1)
    if prior.has_gradient:
        assert prior.g(x).shape == (1,)
        assert prior.grad(x).shape == x.shape
    else:
        assert drawn(prior).shape[:2] == (2, 2)


@pytest.mark.parametrize(("method", "ndim"), PRIORS)
def test_poor_references_are_refused(method: registry.Method, ndim: int) -> None:  # row 8
    prior = method.cls(method.parameters(patch_size=3, **QUICK[method.name]), ndim=ndim)
    constant = Reference(torch.full((1, *(20,) * ndim), 0.5))
    small = Reference(torch.rand((1, *(5,) * ndim)))
    empty = Reference(torch.rand((1, *(2,) * ndim)))
    for reference in (constant, small, empty):
        with pytest.raises(InvalidInput):
            jobs.run(fit(prior, [reference], seed=0))
        assert not prior.is_fitted


@pytest.mark.parametrize(("method", "ndim"), PRIORS)
def test_identical_patches_give_finite_numbers(  # rows 46 and 47
    method: registry.Method, ndim: int
) -> None:
    """Few distinct patches, each many times: ties, zero distances, singular covariances."""
    edge = 3
    generator = torch.Generator().manual_seed(0)
    tile = torch.rand((1, *(edge,) * ndim), generator=generator)
    image = tile.repeat(1, *(30 // edge if ndim == 2 else 12 // edge,) * ndim)
    prior = method.cls(method.parameters(patch_size=edge, **QUICK[method.name]), ndim=ndim)
    jobs.run(fit(prior, [Reference(image)], seed=0))
    if not prior.has_gradient:
        assert bool(torch.isfinite(drawn(prior)).all())
        return
    for x in (image, torch.full_like(image, 0.5), torch.zeros_like(image)):
        value, gradient = prior.subset_value_and_grad(x[None], generator)
        for found in (prior.g(x[None]), prior.grad(x[None]), value, gradient):
            assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize(("method", "ndim"), PRIORS)
def test_masked_and_missing_samples_are_never_learnt(method: registry.Method, ndim: int) -> None:
    image = texture(ndim)
    spoiled = image.clone()
    mask = torch.ones(image.shape[1:], dtype=torch.bool)
    mask[..., -5:] = False
    spoiled[..., -5:] = 40.0
    results = []
    for candidate in (image, spoiled):
        prior = method.cls(method.parameters(patch_size=3, **QUICK[method.name]), ndim=ndim)
        jobs.run(fit(prior, [Reference(candidate, mask)], seed=1))
        results.append(answer(prior, image[None]))
    assert torch.equal(*results)
    spoiled[..., -5:] = torch.nan
    prior = method.cls(method.parameters(patch_size=3, **QUICK[method.name]), ndim=ndim)
    jobs.run(fit(prior, [Reference(spoiled)], seed=1))
    assert torch.equal(answer(prior, image[None]), results[0])


@pytest.mark.parametrize(("method", "ndim"), PRIORS)
def test_stopping_keeps_a_usable_state(method: registry.Method, ndim: int) -> None:
    options = QUICK[method.name] | LONG.get(method.name, {})
    prior = method.cls(method.parameters(patch_size=3, **options), ndim=ndim)
    jobs.run(fit(prior, [Reference(texture(ndim))], seed=1))
    before = answer(prior, texture(ndim, seed=4)[None])
    job = fit(prior, [Reference(texture(ndim))], seed=2)
    next(job)
    job.close()
    assert prior.is_fitted
    after = answer(prior, texture(ndim, seed=4)[None])
    assert torch.allclose(after, before, rtol=1e-6, atol=1.0 if prior.has_gradient else 1e-6)


@EACH
def test_without_a_gradient_the_refusal_names_the_next_step(prior: Prior) -> None:
    x = texture(prior.ndim, seed=5)[None]
    for function in (prior.g, prior.grad):
        if not prior.has_gradient:
            with pytest.raises(InvalidInput, match="'direct'"):
                function(x)


@EACH_DRAWING
def test_drawn_images_are_independent_and_follow_the_seed(prior: Any) -> None:
    assert isinstance(prior, DrawsImages)
    given, images = measurement(prior), drawn(prior, 4, seed=3)
    assert given.y is not None
    assert images.shape[2:] == given.physics.in_shape(given.y.shape[2:])
    assert torch.equal(images[:2], drawn(prior, 2, seed=3)), "however many are asked for"
    assert not torch.equal(images[:2], drawn(prior, 2, seed=4))
    apart = (images - images.mean(0)).flatten(1)
    likeness = torch.corrcoef(apart) - torch.eye(4)
    # four centred vectors correlate with -1/3; pairs of opposite noise with -1 after each other
    assert float((likeness + (1 - torch.eye(4)) / 3).abs().max()) < 0.3
    assert len(drawn(prior, 4, should_stop=lambda: True)) == 1


@EACH_DRAWING
def test_drawing_for_another_operator_is_refused(prior: Any) -> None:
    other = SuperResolution(SuperResolutionParameters(factor=3, blur_sigma=0.5), prior.ndim)
    with pytest.raises(InvalidInput, match="train"):
        jobs.run(prior.draws(torch.rand(1, 1, *(8,) * prior.ndim), other, 2))

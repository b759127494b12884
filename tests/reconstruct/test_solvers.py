"""Laws of every registered solver, and the fine points of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from napari_invprior import jobs, registry
from napari_invprior.errors import JobError
from napari_invprior.numerics.metrics import psnr
from napari_invprior.physics.base import Physics
from napari_invprior.physics.inpainting import Denoising, DenoisingParameters
from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
from napari_invprior.physics.superresolution import SuperResolution, SuperResolutionParameters
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.mixtures.gmm import GaussianMixture
from napari_invprior.priors.mixtures.pca_gmm import PcaMixture
from napari_invprior.reconstruct.tiles import estimated_bytes, solve_within_memory
from napari_invprior.reconstruct.total_variation import (
    TotalVariation,
    gradient,
    gradient_adjoint,
    total_variation,
)
from napari_invprior.reconstruct.variational import Variational, VariationalParameters
from napari_invprior.samples import load_sample

SOLVERS = [pytest.param(m, id=m.name) for m in registry.methods("solver")]
WEIGHTS = {"variational": 0.004, "half_quadratic": 0.25, "total_variation": 4.0, "direct": 1.0}


def photograph(name: str, *window: slice) -> torch.Tensor:
    return torch.from_numpy(load_sample(name)[window].astype("float32") / 255)[None, None]


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    mixture = GaussianMixture(GaussianMixture.Parameters(components=8, patch_size=5), ndim=2)
    image = photograph("brick-reference", slice(0, 160), slice(0, 160))
    jobs.run(mixture.fit([Reference(image[0])], seed=0))
    return mixture


@pytest.fixture(scope="module")
def joint() -> PcaMixture:
    """A prior that was trained for the operator of `problem`."""
    prior = PcaMixture(PcaMixture.Parameters(patch_size=6, components=2, mode="full"), ndim=2)
    physics = SuperResolution(SuperResolutionParameters(factor=2), 2)
    measurement = Measurement(None, physics, GaussianNoise(GaussianParameters(sigma=0.01)))
    image = photograph("brick-reference", slice(0, 160), slice(0, 160))
    jobs.run(prior.fit([Reference(image[0])], seed=0, measurement=measurement))
    return prior


@pytest.fixture
def prior(request: pytest.FixtureRequest, mixture: GaussianMixture) -> Any:
    """What suits the solver of the test: most need no more than a density of patches."""
    method = request.node.callspec.params.get("method") if hasattr(request.node, "callspec") else 0
    return request.getfixturevalue("joint") if method and method.name == "direct" else mixture


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor, Physics, GaussianNoise]:
    truth = photograph("brick-test", slice(100, 160), slice(40, 104))
    physics = SuperResolution(SuperResolutionParameters(factor=2), 2)
    noise = GaussianNoise(GaussianParameters(sigma=0.01))
    y = noise.simulate(physics.A(truth), torch.Generator().manual_seed(0))
    return truth, y, physics, noise


def solve(method: registry.Method, *arguments: Any, **options: Any) -> torch.Tensor:
    solver = method.cls(method.parameters())
    x: torch.Tensor = jobs.run(
        solver.solve(*arguments, **{"weight": WEIGHTS[method.name]} | options)
    )
    return x


@pytest.mark.parametrize("method", SOLVERS)
def test_improves_on_the_start(method: registry.Method, problem: Any, prior: Any) -> None:
    truth, y, physics, noise = problem
    x = solve(method, y, physics, noise, prior)
    assert x.shape == truth.shape
    assert psnr(x, truth, 4) > psnr(physics.start(y), truth, 4) + 0.1


@pytest.mark.parametrize("method", SOLVERS)
def test_same_seed_same_image_and_data_untouched(
    method: registry.Method, problem: Any, prior: Any
) -> None:
    _, y, physics, noise = problem
    before = y.clone()
    first = solve(method, y, physics, noise, prior, seed=3)
    assert torch.equal(first, solve(method, y, physics, noise, prior, seed=3))
    assert torch.equal(y, before)


@pytest.mark.parametrize("method", SOLVERS)
def test_stops_when_asked_and_in_time(method: registry.Method, problem: Any, prior: Any) -> None:
    truth, y, physics, noise = problem
    x = solve(method, y, physics, noise, prior, should_stop=lambda: True)
    assert x.shape == truth.shape
    assert bool(torch.isfinite(x).all())
    x = solve(method, y, physics, noise, prior, time_budget_s=1e-3)
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("method", SOLVERS)
def test_tiles_agree_with_the_whole(method: registry.Method, prior: Any) -> None:
    truth = photograph("brick-test", slice(100, 220), slice(40, 136))
    physics = SuperResolution(SuperResolutionParameters(factor=2), 2)
    noise = GaussianNoise(GaussianParameters(sigma=0.01))
    y = noise.simulate(physics.A(truth), torch.Generator().manual_seed(0))
    solver = method.cls(method.parameters())
    events: list[jobs.Event] = []
    options = {"weight": WEIGHTS[method.name]}
    whole = jobs.run(solve_within_memory(solver, y, physics, noise, prior, **options))
    tiled = jobs.run(
        solve_within_memory(
            solver, y, physics, noise, prior, memory=estimated_bytes(y, physics) // 2, **options
        ),
        events.append,
    )
    assert any(isinstance(e, jobs.Message) and "tiles" in e.text for e in events)
    # At the image border a tile assumes less than the whole does; the inside must agree.
    assert psnr(tiled, truth, 10) > psnr(whole, truth, 10) - 0.15
    difference = (tiled - whole).abs()[..., 8:-8, 8:-8]
    assert float(difference.mean()) < 0.004
    seam = difference[..., 42:62, :].mean()
    assert float(seam) < 1.5 * float(difference.mean()) + 1e-4


def test_out_of_memory_halves_the_tile_and_then_gives_up(problem: Any, prior: Any) -> None:
    _, y, physics, noise = problem

    class Hungry(Variational):
        limit = 950

        def solve(self, data: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if data.numel() > self.limit:
                raise torch.OutOfMemoryError("out of memory")
            return super().solve(data, *arguments, **options)

    solver = Hungry(VariationalParameters(iterations=5))
    events: list[jobs.Event] = []
    x = jobs.run(
        solve_within_memory(solver, y, physics, noise, prior, weight=0.004), events.append
    )
    assert x.shape[2:] == physics.in_shape(y.shape[2:])
    assert sum("memory ran out" in e.text for e in events if isinstance(e, jobs.Message)) >= 1
    solver.limit = 0
    with pytest.raises(JobError, match="memory ran out"):
        jobs.run(solve_within_memory(solver, y, physics, noise, prior, weight=0.004))


@pytest.mark.parametrize(
    "options",
    [
        {"optimiser": "lbfgs", "iterations": 100},
        {"patch_count": 150},
        {"stride": 2},
        {"rim": 0},
    ],
)
def test_variational_options(options: dict[str, Any], problem: Any, prior: Any) -> None:
    truth, y, physics, noise = problem
    solver = Variational(VariationalParameters(**options))
    x = jobs.run(solver.solve(y, physics, noise, prior, weight=0.004))
    assert psnr(x, truth, 4) > psnr(physics.start(y), truth, 4) + 0.3


def test_plateau_stops_early(problem: Any, prior: Any) -> None:
    _, y, physics, noise = problem
    steps = {}
    for plateau in (0.0, 0.05):
        events: list[Any] = []
        solver = Variational(VariationalParameters(iterations=300, plateau=plateau))
        jobs.run(solver.solve(y, physics, noise, prior, weight=0.004), events.append)
        steps[plateau] = [e.step for e in events if isinstance(e, jobs.Progress)][-1]
    assert steps[0.0] == 300
    assert steps[0.05] < 200


def test_an_infinite_objective_is_diagnosed(problem: Any, prior: Any) -> None:  # row 45
    _, y, physics, noise = problem

    class Broken(GaussianMixture):
        def potential_and_grad(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            value, slope = super().potential_and_grad(patches)
            return value * torch.nan, slope * torch.nan

    broken = Broken(prior.parameters, ndim=2)
    broken.load_state(prior.state())
    solver = Variational(VariationalParameters())
    with pytest.raises(JobError, match="infinite"):
        jobs.run(solver.solve(y, physics, noise, broken, weight=0.004))


def test_finite_differences_and_their_adjoint() -> None:
    x = torch.rand(2, 1, 5, 6, 4, dtype=torch.float64)
    p = torch.rand(3, 2, 1, 5, 6, 4, dtype=torch.float64)
    left, right = float((gradient(x) * p).sum()), float((x * gradient_adjoint(p)).sum())
    assert left == pytest.approx(right, rel=1e-12)


def test_total_variation_denoising_equals_scikit_image() -> None:
    from skimage.restoration import denoise_tv_chambolle

    truth = photograph("brick-test", slice(100, 148), slice(40, 88)).double()
    y = truth + 0.05 * torch.randn(truth.shape, dtype=torch.float64)
    physics = Denoising(DenoisingParameters(), 2)
    # scikit-image minimises |x - y|^2 / 2 + w TV; ours has |x - y|^2 / (2 v) + weight TV.
    ours = total_variation(y, physics, 1.0, 0.05, iterations=3000, tolerance=0)
    theirs = denoise_tv_chambolle(y[0, 0].numpy(), weight=0.05, eps=1e-12, max_num_iter=5000)
    assert float((ours[0, 0] - torch.from_numpy(theirs)).abs().max()) < 2e-3


def test_total_variation_box_keeps_the_range(problem: Any) -> None:
    _, y, physics, noise = problem
    boxed = total_variation(y, physics, 1e-4, 4.0, box=(0.4, 0.6), iterations=200)
    assert float(boxed.min()) >= 0.4 - 1e-6
    assert float(boxed.max()) <= 0.6 + 1e-6
    solver = TotalVariation(TotalVariation.Parameters(box=True))
    x = jobs.run(solver.solve(y, physics, noise, weight=4.0, value_range=(0.4, 0.6)))
    assert float(x.max()) <= 0.6 + 1e-6

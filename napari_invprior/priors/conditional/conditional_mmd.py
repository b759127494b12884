"""Conditional MMD flow: networks that turn noise and a first image into plausible images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import (
    Event,
    Job,
    Preview,
    Result,
    Sample,
    ShouldStop,
    Stage,
    forward,
    never,
)
from napari_invprior.memory import require
from napari_invprior.networks.unet import UNet
from napari_invprior.numerics.reflect import pad_reflect, pad_wrapped
from napari_invprior.physics.base import Physics
from napari_invprior.physics.unobserved import complete_operator
from napari_invprior.priors.base import Measurement, Reference
from napari_invprior.priors.conditional.centre import Centre, fit_centre, middles
from napari_invprior.priors.conditional.plan import (
    SIZE,
    USUAL_EDGE,
    ConditionalMMDParameters,
    draw_slices,
)
from napari_invprior.priors.conditional.simulated_pairs import Pairs, phase, simulated_pairs
from napari_invprior.priors.drawn import DrawingPrior
from napari_invprior.priors.patchwise import PREVIEW_PATCHES
from napari_invprior.priors.state import check_entry, check_network, check_positive
from napari_invprior.registry import register
from napari_invprior.transport.sliced_flows.displacement import Fitting
from napari_invprior.transport.sliced_flows.flow_chain import ChainPlan, FlowChain
from napari_invprior.transport.slices.local import as_columns, as_images

MARGIN = {2: 16, 3: 8}
"""Samples by which images are continued, so that no network sees their border."""
FEATURE_COPIES = 8
"""Feature maps of the finest level that a network holds at once."""
MOST_NETWORKS = 1000


class Canvas(NamedTuple):
    """What images of one set of data are drawn on.

    Attributes
    ----------
    middle, spread : Tensor
        (planes, C, *padded).
    condition : Tensor
        (k, planes), for the chain.
    inside : tuple of slice
        The image in them.
    """

    middle: Tensor
    spread: Tensor
    condition: Tensor
    inside: tuple[slice, ...]


@register(
    kind="prior",
    name="conditional_mmd",
    title="Conditional MMD flow",
    papers=("2310.03054",),
    inputs=("references",),
    outputs=("prior", "maps"),
    needs_references=True,
    uncertainty=True,
)
class ConditionalMMD(DrawingPrior):
    """Draws plausible images for any data of one operator, after learning from references alone.

    Data are simulated for windows ``x_i`` of the references. A network gives middle ``m`` and
    spread ``s`` of ``x`` for the fast first image ``c`` of its data; particles ``z_i`` with frozen
    conditions ``(m, log s)`` flow down the gradient of ``D^2((z_i, c_i), ((x_i - m_i) / s_i,
    c_i))``, and a chain of networks learns their way. ``m + s T(noise, c)`` is then a plausible
    image. The networks are convolutional: images may have any size.

    The first image lies on the image's grid for every operator, whatever its data look like: it
    is a spline through coarse samples, the nearest observed samples beside a mask, the filtered
    back-projection of a scan.

    References
    ----------
    Hagemann et al., Posterior Sampling Based on Gradient Flows of the MMD with Negative Distance
    Kernel, ICLR 2024, arXiv 2310.03054.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> from napari_invprior.physics.noise import GaussianNoise, GaussianParameters
    >>> from napari_invprior.physics.superresolution import (
    ...     SuperResolution, SuperResolutionParameters)
    >>> physics = SuperResolution(SuperResolutionParameters(factor=2), ndim=2)
    >>> noise = GaussianNoise(GaussianParameters(sigma=0.02))
    >>> image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> quick = ConditionalMMDParameters(
    ...     patch_size=8, pairs=100, centre_steps=1, networks=1, steps=1, first_flow=1, samples=2)
    >>> prior = run(ConditionalMMD(quick, ndim=2).fit(
    ...     [Reference(image)], measurement=Measurement(None, physics, noise)))
    >>> run(prior.estimate(torch.rand(1, 1, 9, 10))).shape
    torch.Size([1, 1, 18, 20])
    """

    Parameters = ConditionalMMDParameters
    parameters: ConditionalMMDParameters
    needs_measurement = True

    def __init__(
        self, parameters: ConditionalMMDParameters, *, ndim: int, channels: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self.plan = parameters.plan()
        self._centre: Centre | None = None
        self._chain: FlowChain | None = None
        self._factor: tuple[int, ...] = ()

    def usual_edge(self) -> int:
        return USUAL_EDGE[self.parameters.preset][self.ndim]

    @property
    def is_fitted(self) -> bool:
        return self._chain is not None and self._chain.started

    @property
    def chain(self) -> FlowChain:
        """The networks from noise to ``u``.

        Raises
        ------
        InvalidInput
            Before `fit`.
        """
        if self._chain is None or not self._chain.started:
            raise InvalidInput("the networks are not trained yet; call fit with a measurement")
        return self._chain

    def _networks(self, masked: bool, seed: int = 0) -> tuple[Centre, FlowChain]:
        """A new centre and an empty chain."""
        size, channels = SIZE[self.parameters.preset][self.ndim], self.joint_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            centre = self._fresh_centre(masked).to(self.device)
        inputs = channels + centre.conditions
        return centre, FlowChain(
            lambda: UNet(self.ndim, inputs, channels, size), (channels, *self.patch)
        )

    def _fresh_centre(self, masked: bool) -> Centre:
        size = SIZE[self.parameters.preset][self.ndim]
        return Centre(self.ndim, self.joint_channels, masked=masked, size=size)

    # --- learning ---------------------------------------------------------------------------

    def fit(
        self,
        references: Sequence[Reference],
        *,
        seed: int = 0,
        should_stop: ShouldStop = never,
        measurement: Measurement | None = None,
    ) -> Job:
        """Simulate data of the references, then add networks; what is fitted goes on.

        Only the physics and the noise of the measurement count, not its data.

        Raises
        ------
        InvalidInput
            Without a measurement, or for references that are constant or too small.
        """
        if measurement is None:
            raise InvalidInput(
                "the flow learns from simulated data: choose the physics and the noise (an "
                "observation is not needed)"
            )
        operator = complete_operator(measurement.physics)
        generator = torch.Generator().manual_seed(seed)
        pairs = simulated_pairs(
            references, operator, measurement.noise, self, self.plan.pairs, generator
        )
        self._require_memory(self.plan.batch * math.prod(self.patch), training=True)
        if not self.is_fitted or not self.chain.networks or self._mismatch(operator):
            centre, chain = self._networks(pairs.seen is not None, seed)
            centre.measure(pairs)
            yield from fit_centre(
                centre, pairs, steps=self.plan.centre_steps, batch=self.plan.batch,
                learning_rate=self.plan.learning_rate, generator=generator,
                should_stop=should_stop,
            )
            centre.requires_grad_(False).eval()
        else:
            assert self._centre is not None
            centre, chain = self._centre, self.chain
        yield from self._grow(centre, chain, pairs, operator, seed, should_stop)
        yield Result(self)

    def _grow(
        self, centre: Centre, chain: FlowChain, pairs: Pairs, operator: Physics, seed: int,
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """Add networks to the chain, which is adopted before the first one."""
        middle, spread, condition = yield from forward(middles(centre, pairs, should_stop))
        pairs = pairs.first_of(len(middle))  # after a stop, some noise to start from is enough
        targets = as_columns((pairs.truth - middle) / spread)
        known = as_columns(condition) * self.parameters.condition_weight

        def show(points: Tensor) -> Preview:
            u = as_images(points[:, :PREVIEW_PATCHES], self.patch)
            return self.preview(as_columns((middle[: len(u)] + spread[: len(u)] * u).cpu()))

        chosen = self.plan
        plan = ChainPlan(
            blocks=chosen.networks, first=chosen.first_flow, growth=1024, most=chosen.most_flow,
            step=chosen.step, momentum=chosen.momentum,
            fitting=Fitting(chosen.steps, chosen.batch, chosen.learning_rate, clip=1.0),
        )
        self._centre, self._chain, self._factor = centre, chain, phase(operator)[0]
        self.operator = operator
        draw = draw_slices(self.parameters, torch.cat([targets, known]), self.patch)
        yield from forward(chain.train(
            targets, draw, target_condition=known,
            particles=chain.count, plan=plan, seed=seed, show=show, should_stop=should_stop,
        ))

    def _require_memory(self, samples: int, *, training: bool) -> None:
        """Refuse what a network cannot hold: so many samples at once."""
        size = SIZE[self.parameters.preset][self.ndim]
        copies = FEATURE_COPIES * (1 + 2 * size.blocks * training)
        require(
            4 * copies * size.base * samples, f"a network on {samples} samples",
            "lower batch or patch_size, or crop the observation",
        )

    # --- use --------------------------------------------------------------------------------

    def at_operator(self, physics: Physics) -> ConditionalMMD:
        """The prior for data of an operator like the one that it learnt for.

        Raises
        ------
        InvalidInput
            For another magnification, or if only one of both has a mask.
        """
        operator = complete_operator(physics)
        _ = self.chain
        reason = self._mismatch(operator)
        if reason:
            raise InvalidInput(f"{reason}; train the prior for this operator")
        other = type(self)(
            self.parameters, ndim=self.ndim, channels=self.channels, device=str(self.device)
        )
        other._centre, other._chain, other._factor = self._centre, self._chain, self._factor
        other.operator = operator
        return other

    def _mismatch(self, operator: Physics) -> str:
        """Why the networks do not suit an operator; empty where they may."""
        assert self._centre is not None
        factor = phase(operator)[0]
        if factor != self._factor:
            return f"the networks learnt for factor {self._factor}, the operator has {factor}"
        if self._centre.masked != (operator.mask is not None):
            with_or_without = "with" if self._centre.masked else "without"
            return f"the networks learnt for an operator {with_or_without} a mask"
        return ""

    def draws(
        self, y: Tensor, physics: Physics, count: int, *, seed: int = 0,
        should_stop: ShouldStop = never,
    ) -> Job:
        """See `drawn.DrawsImages`; a mask must be one like those that were learnt."""
        prior = self.at_operator(physics)
        stage, generator = Stage("sample", count), torch.Generator().manual_seed(seed)
        canvas = prior._canvas(y)
        slot = 0
        for slot in range(count):
            u = yield from forward(prior._flowed(canvas, generator, stage, slot))
            image = (canvas.middle + canvas.spread * u)[(..., *canvas.inside)]
            yield Sample(slot, image.reshape(self.channels, *image.shape[2:]))
            if should_stop():
                break
        yield stage.progress(slot + 1)
        yield Result(slot + 1)

    @torch.no_grad()
    def _canvas(self, y: Tensor) -> Canvas:
        operator, centre = self.operator, self._centre
        assert operator is not None and centre is not None
        first = self.as_planes(operator.start(y).float().to(self.device))
        space = tuple(first.shape[2:])
        margins = _margins(operator, space, self.patch)
        self._require_memory(
            len(first) * math.prod(n + sum(m) for n, m in zip(space, margins, strict=True)),
            training=False,
        )
        known = [first]
        if centre.masked:
            assert operator.mask is not None
            known.append(operator.mask.to(first).expand(len(first), 1, *space))
        continued = pad_wrapped if operator.boundary == "circular" else pad_reflect
        known = [continued(k, margins) for k in known]
        found = centre(known[0], known[1] if centre.masked else None)
        condition = as_columns(found.condition) * self.parameters.condition_weight
        inside = tuple(slice(m[0], m[0] + n) for m, n in zip(margins, space, strict=True))
        return Canvas(found.middle, found.spread, condition, inside)

    @torch.no_grad()
    def _flowed(
        self, canvas: Canvas, generator: torch.Generator, stage: Stage, done: int
    ) -> Job:
        """New noise through all networks: (planes, C, *padded)."""
        space = canvas.middle.shape[2:]
        chain = self.chain.resized(canvas.middle.shape[1:])
        x = chain.noise(len(canvas.middle), generator).to(canvas.middle)
        for block in range(len(chain.networks)):
            x = chain.apply(block, x, canvas.condition)
            if stage.due():
                yield stage.progress(done)
        yield Result(as_images(x, space))

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        chain = self.chain
        assert self._centre is not None
        found = {
            "factor": torch.tensor(self._factor, dtype=torch.float64),
            "masked": torch.tensor([float(self._centre.masked)]),
        }
        found |= {f"centre.{k}": v.cpu().clone() for k, v in self._centre.state_dict().items()}
        return found | {f"chain.{name}": value for name, value in chain.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        check_entry(state, "factor", (self.ndim,), self.name)
        check_positive(state, ["factor"], self.name)
        check_entry(state, "masked", (1,), self.name)
        masked = bool(state["masked"])
        check_network(state, "centre.", partial(self._fresh_centre, masked), self.name)
        centre, chain = self._networks(masked)
        weights = {name: state[f"centre.{name}"] for name in centre.state_dict()}
        check_positive({"centre.moments": weights["moments"][1:]}, ["centre.moments"], self.name)
        self._check_chain(state, chain, centre.conditions)
        held = {k.removeprefix("chain."): v for k, v in state.items() if k.startswith("chain.")}
        chain.load_state({name: value.to(self.device) for name, value in held.items()})
        for net in chain.networks:
            net.to(self.device)
        centre.load_state_dict(weights)
        self._centre, self._chain = centre.requires_grad_(False).eval(), chain
        self._factor = tuple(int(f) for f in state["factor"].tolist())

    def _check_chain(self, state: Mapping[str, Tensor], chain: FlowChain, conditions: int) -> None:
        """Refuse entries of the chain that are missing or do not fit, by their own names."""
        for name in ("chain.scales", "chain.particles"):
            if name not in state:
                raise InvalidInput(f"{self.name}: {name!r} is missing")
        count = min(len(state["chain.scales"]), MOST_NETWORKS)
        points = state["chain.particles"].shape[-1]
        expected = {
            "moments": (2,), "particles": (chain.dim, points), "mean": (chain.dim,),
            "root": (chain.dim, 1),
            "condition": (conditions * math.prod(self.patch), points),
        }
        for network in range(count):
            check_network(state, f"chain.networks.{network:03d}.", chain.network, self.name)
        if count:
            expected["scales"] = (count,)
        for name, shape in expected.items():
            check_entry(state, f"chain.{name}", shape, self.name)


def _margins(
    operator: Physics, space: Sequence[int], patch: Sequence[int]
) -> list[tuple[int, int]]:
    """Samples before and behind the image on each axis; a block of it begins the whole.

    None where windows were whole images: the networks know their borders.
    """
    least = [MARGIN[len(space)] if n > p else 0 for n, p in zip(space, patch, strict=True)]
    factor, begin = phase(operator)
    return [
        (m + (-b - m) % f, m) for m, b, f in zip(least, begin, factor, strict=True)
    ]

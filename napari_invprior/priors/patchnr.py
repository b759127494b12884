"""patchNR: the density of patches, learned from very few images by a normalizing flow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput
from napari_invprior.jobs import Event, Job, Message, Preview, Result, ShouldStop, Stage, never
from napari_invprior.memory import require
from napari_invprior.networks.coupling import CouplingFlow, weight_count
from napari_invprior.networks.density import PatchDensity, Sigma
from napari_invprior.networks.draws import Draws, draw_patches
from napari_invprior.networks.judge import GAIN, OVERFIT, Judge
from napari_invprior.networks.training import Trainer, Training, training_bytes
from napari_invprior.networks.whitening import Whitening
from napari_invprior.numerics.patches import symmetries
from napari_invprior.parameters import Parameters, overlaid, parameter
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patchwise import PREVIEW_PATCHES, PatchPotential
from napari_invprior.registry import register

NOISE_RANGE = (0.01, 0.3)
"""Noise levels of a noise-conditional prior, grey (findings in 3D)."""
FEWEST, USABLE, GOOD = 100, 2000, 10000
_MOST_NUMBERS = 2**26
_EVALUATE_EVERY, _RAREST = 100, 1000
_FEWEST_JUDGED = 5
_SETTLE = 5
"""A training that gains no more ends with a falling step in this part of the planned steps."""
_PREVIEW_SECONDS = 2.0
_TURNED = 160_000
_LOW = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

Edge = Annotated[int, Field(ge=2, le=32)]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One complete training plan; the fields are explained in `PatchNR.Parameters`."""

    hidden: int
    blocks: int
    batch: int
    steps: int
    learning_rate: float
    one_cycle: bool
    whiten: bool
    noise: float
    symmetries: Literal["auto", "on", "off"]
    average: float
    stop_early: bool
    noise_conditional: bool | None
    """Whether one flow learns all noise levels; in 3D only when None."""


PRESETS = {
    "fast": Plan(64, 8, 256, 2000, 4e-3, True, True, 0.004, "auto", 0.998, True, None),
    "good": Plan(128, 8, 512, 12_000, 3e-3, True, True, 0.0, "auto", 0.998, True, True),
    "paper": Plan(512, 5, 32, 750_000, 1e-4, False, False, 0.0, "off", 0.0, False, False),
}
GOOD_EDGE = 8
"""Patch edge of the preset ``good`` in 2D: a density of all noise levels bears larger patches."""


class PatchNRParameters(Parameters):
    """What can be chosen for a patchNR; empty fields follow the preset."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None,
        "Patch edge, one number or one per axis; empty is 6 in 2D (8 for preset good), 4 in 3D.",
        unit="px",
    )
    channels: Literal["separate", "joint"] = parameter(
        "separate", "Channels as images of their own, or all in one patch.", advanced=True
    )
    preset: Literal["fast", "good", "paper"] = parameter(
        "fast", "Seconds, minutes, or the paper's setting (hours on a CPU)."
    )
    hidden: int | None = parameter(None, "Width of the sub-nets.", ge=4, le=4096, advanced=True)
    blocks: int | None = parameter(None, "Coupling blocks.", ge=1, le=32, advanced=True)
    batch: int | None = parameter(None, "Patches per step.", ge=1, le=65536, advanced=True)
    steps: int | None = parameter(
        None, "Training steps, at most.", ge=1, le=10_000_000, advanced=True
    )
    learning_rate: float | None = parameter(
        None, "Adam step (the peak of a one-cycle).", ge=1e-8, le=0.1, advanced=True
    )
    one_cycle: bool | None = parameter(
        None, "Let the Adam step rise and fall over the run.", advanced=True
    )
    whiten: bool | None = parameter(None, "Start from the Gaussian of the patches.", advanced=True)
    noise: float | None = parameter(
        None, "Noise added to the patches in training.", unit="grey", ge=0, le=0.5, advanced=True
    )
    symmetries: Literal["auto", "on", "off"] | None = parameter(
        None, "Turn and mirror patches; auto if the texture has no direction.", advanced=True
    )
    average: float | None = parameter(
        None, "Decay per step of the weight average; 0 for none.", ge=0, lt=1, advanced=True
    )
    stop_early: bool | None = parameter(
        None, "Finish when the held-out fit no longer improves.", advanced=True
    )
    noise_conditional: bool | None = parameter(
        None,
        "Learn the density for all noise levels from 0.01 to 0.3, as half-quadratic splitting "
        "needs it; empty: for preset good, and in 3D for preset fast.",
        advanced=True,
    )
    precision: Literal["float32", "bfloat16", "float16"] = parameter(
        "float32", "Type of the large products; the short ones need hardware for it.", advanced=True
    )

    def plan(self) -> Plan:
        """The preset with every field that is given."""
        return overlaid(PRESETS[self.preset], self)


@register(
    kind="prior",
    name="patchnr",
    title="patchNR",
    papers=("2205.12021",),
    inputs=("references",),
    outputs=("prior",),
    needs_references=True,
    default_for=(2,),
)
class PatchNR(PatchPotential):
    """Patch density learned by a normalizing flow; good from one region of 64 x 64 px on.

    ``potential(v) = |T^-1(v)|^2 / 2 - log|det grad T^-1(v)|``, trained by maximum likelihood. With
    whitening the flow starts as the Gaussian of the patches. A tenth of the patches, in whole
    blocks of the image, is held out: it shows overfitting, stops the training and selects the
    weights that are kept.

    Attributes
    ----------
    noise_conditional : bool
        Whether one flow holds the densities of all noise levels in `NOISE_RANGE`.
    sigma : float or None
        Noise level at which a noise-conditional prior is evaluated where none is given, grey; the
        smallest trained level when None.

    References
    ----------
    Altekrueger et al., PatchNR, Inverse Problems 39(6), 2023, arXiv 2205.12021.

    Examples
    --------
    >>> from napari_invprior import jobs
    >>> image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    >>> prior = PatchNR(PatchNRParameters(patch_size=3, hidden=8, steps=20), ndim=2)
    >>> jobs.run(prior.fit([Reference(image)])) is prior
    True
    >>> prior.sample_patches(5, seed=0).shape
    torch.Size([9, 5])
    """

    Parameters = PatchNRParameters
    parameters: PatchNRParameters

    def __init__(
        self,
        parameters: PatchNRParameters,
        *,
        ndim: int,
        channels: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        self.plan = parameters.plan()
        wanted = self.plan.noise_conditional
        self.noise_conditional = ndim == 3 if wanted is None else wanted
        self.sigma: float | None = None
        self._density: PatchDensity | None = None
        self._low = _LOW[parameters.precision]

    def usual_edge(self) -> int:
        good_image = self.parameters.preset == "good" and self.ndim == 2
        return GOOD_EDGE if good_image else super().usual_edge()

    @property
    def is_fitted(self) -> bool:
        return self._density is not None

    @property
    def density(self) -> PatchDensity:
        """The trained density.

        Raises
        ------
        InvalidInput
            Before training.
        """
        if self._density is None:
            raise InvalidInput("this patchNR is not trained yet: pick references and train it")
        return self._density

    def potential(self, patches: Tensor, sigma: Sigma = None) -> Tensor:
        """``-log p`` of each column of (d, N) without ``d/2 log(2 pi)``: (N,)."""
        sigma = self.sigma if sigma is None else sigma
        return self.density.potential(patches.detach().to(self.density.flow.weights), sigma)

    def potential_and_grad(self, patches: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """`potential` (N,) and its gradient (d, N)."""
        sigma = self.sigma if sigma is None else sigma
        patches = patches.detach().to(self.density.flow.weights)
        return self.density.potential_and_grad(patches, sigma, self._low)

    def denoise_patches(self, patches: Tensor, sigma: float) -> Tensor:
        """Tweedie's posterior mean of noisy patches: ``p - sigma^2 grad potential(p, sigma)``.

        Needs a noise-conditional prior, because the density of the *noisy* patches is meant.
        """
        if not self.noise_conditional:
            raise InvalidInput("denoising needs a prior trained with noise_conditional = true")
        return patches - sigma**2 * self.potential_and_grad(patches, sigma)[1]

    def sample_patches(self, n: int, seed: int) -> Tensor:
        """Draw ``n`` patches: (d, n)."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.density.sample(n, generator, self.sigma)

    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """Train; a trained prior continues from its weights with a third of the step.

        When stopped, or closed, the best state so far (by held-out fit) stays.

        Raises
        ------
        InvalidInput
            For constant references or fewer than 100 patches.
        JobError
            If training diverges again and again.
        """
        generator = torch.Generator().manual_seed(seed)
        draws = self._draws(references, generator)
        yield from self._too_few(draws)
        plan, warm = self.plan, self.is_fitted
        require(
            training_bytes(self.dim, plan.hidden, plan.blocks, plan.batch),
            f"training with {plan.blocks} blocks of width {plan.hidden} and batch {plan.batch}",
            "lower hidden, batch or blocks",
        )
        if warm:
            plan = dataclasses.replace(plan, learning_rate=plan.learning_rate / 3)
        start = self.density if warm else self._fresh(draws, seed)
        turns = self._turns(draws)
        trainer = Trainer(start, draws.train, _training(plan), symmetries=turns, seed=seed)
        judge = Judge(start, draws, min(4096, max(1000, 30 * plan.batch)), generator)
        if warm or plan.whiten:
            judge.evaluate(start.flow.weights)
            self._density = start
        yield from self._train(trainer, judge, should_stop)
        yield Result(self)

    def _train(self, trainer: Trainer, judge: Judge, should_stop: ShouldStop) -> Iterator[Event]:
        plan = trainer.training
        # A long one-cycle run gains slowly in its middle: it is judged over longer windows.
        every = min(_RAREST, max(_EVALUATE_EVERY, plan.steps // 40))
        window = max(_FEWEST_JUDGED, plan.steps // every // 4)
        stage, seen, why = Stage("train", plan.steps), _PREVIEW_SECONDS / 2, "all steps done"
        loss, halved, warned = math.nan, trainer.factor, False
        settling = False
        try:
            while trainer.taken < trainer.steps:
                value, factor = trainer.step(), trainer.factor
                if factor < halved:
                    halved = factor
                    yield Message(
                        f"training diverged (loss {value:.3g}): back to the last good weights with "
                        "half the step",
                        "warning",
                    )
                    continue
                loss = value if math.isnan(loss) else 0.95 * loss + 0.05 * value
                if trainer.taken % every == 0 and self._judge(trainer, judge):
                    trainer.mark_good()
                    if judge.gap > OVERFIT and not warned:
                        warned = True
                        yield Message(judge.overfit_text(), "warning")
                    if self.plan.stop_early and not settling and judge.is_flat(window):
                        why = "no further gain on held-out patches"
                        # The last gain comes from the falling step; it is not forgone.
                        settling = judge.gap <= OVERFIT and trainer.settle(plan.steps // _SETTLE)
                        if not settling:
                            break
                        stage.total = trainer.steps
                if should_stop():
                    why = "stopped by you"
                    break
                if stage.due():
                    yield stage.progress(trainer.taken, train=loss, **judge.levels())
                    if stage.seconds > seen:
                        seen = stage.seconds + _PREVIEW_SECONDS
                        yield self._shown(judge.trial)
        except GeneratorExit:
            # Whoever closes the job here keeps what was learned since the last evaluation.
            self._judge(trainer, judge)
            raise
        self._judge(trainer, judge)
        yield stage.progress(trainer.taken, train=loss, **judge.levels())
        yield self._shown(self.density)
        yield Message(f"{why} after {trainer.taken} steps; {judge.verdict()}")

    def _judge(self, trainer: Trainer, judge: Judge) -> bool:
        """Evaluate, take the weights over where they are the best so far; false for NaN."""
        better = judge.evaluate(trainer.weights)
        if better:
            if self._density is None:
                self._density = trainer.density
            self._density.flow.weights.copy_(trainer.weights)
        return math.isfinite(judge.held_out)

    def _draws(self, references: Sequence[Reference], generator: torch.Generator) -> Draws:
        images = [
            (plane.to(self.device, torch.float32), reference.mask)
            for reference in references
            for plane in self.as_planes(reference.image[None])
        ]
        draws = draw_patches(images, self.patch, generator, _MOST_NUMBERS // self.dim)
        if draws.distinct < FEWEST or len(draws.train) == 0 or len(draws.held_out) == 0:
            sizes = [tuple(reference.image.shape[1:]) for reference in references]
            raise InvalidInput(
                f"{draws.distinct} patches of {self.patch} px in the picked regions {sizes}: at "
                f"least {FEWEST} are needed; pick {self._region(USABLE)} or more"
            )
        if float((draws.train - draws.train[:1, :1]).abs().max()) < 1e-6:
            raise InvalidInput(
                "the references are constant (zero variance): pick a region with structure"
            )
        return draws

    def _too_few(self, draws: Draws) -> Iterator[Message]:
        if draws.distinct < USABLE:
            yield Message(
                f"{draws.distinct} distinct patches are too few for a good fit: {USABLE} are "
                f"usable ({self._region(USABLE)}), {GOOD} are good ({self._region(GOOD)})",
                "warning",
            )

    def _region(self, count: int) -> str:
        """A square or cubic region that holds ``count`` patches, in words."""
        edge = math.ceil(count ** (1 / self.ndim))
        return "a region of " + " x ".join(str(edge + p - 1) for p in self.patch) + " px"

    def _fresh(self, draws: Draws, seed: int) -> PatchDensity:
        plan, conditional = self.plan, self.noise_conditional
        whitening = None
        if plan.whiten:
            variance = 0.0 if conditional else plan.noise**2
            whitening = Whitening.fit(draws.train.T, variance=variance)
        return self._skeleton(seed, whitening)

    def _skeleton(self, seed: int, whitening: Whitening | None) -> PatchDensity:
        plan, conditional = self.plan, self.noise_conditional
        flow = CouplingFlow(
            self.dim,
            plan.hidden,
            plan.blocks,
            int(conditional),
            seed=seed,
            zero_last=whitening is not None,
            device=self.device,
        )
        return PatchDensity(flow, whitening, NOISE_RANGE if conditional else None)

    def _turns(self, draws: Draws) -> Tensor | None:
        """Row permutations to train with; ``auto`` asks whether a turned Gaussian fits as well."""
        if self.plan.symmetries == "off":
            return None
        turns = symmetries(self.patch, self.joint_channels).to(self.device)
        if self.plan.symmetries == "on":
            return turns
        some = draws.train[:: max(1, len(draws.train) * len(turns) // _TURNED)]
        turned = Whitening.fit(some[:, turns].flatten(0, 1).T)
        plain = Whitening.fit(some.T)
        cost = turned.potential(draws.held_out.T).mean() - plain.potential(draws.held_out.T).mean()
        return turns if float(cost) <= GAIN else None

    def _shown(self, density: PatchDensity) -> Preview:
        generator = torch.Generator(self.device).manual_seed(0)
        return self.preview(density.sample(PREVIEW_PATCHES, generator, self.sigma))

    def state(self) -> dict[str, Tensor]:
        """Weights, permutations and, where there is one, the whitening (CPU tensors)."""
        return {k: v.detach().cpu().clone() for k, v in self.density.tensors().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._check_shapes(state)
        eye = torch.eye(self.dim, device=self.device)
        white = Whitening(eye[0], eye, eye[0]) if self.plan.whiten else None
        made = self._skeleton(0, white)
        made.load(state)
        self._density = made

    def _check_shapes(self, state: Mapping[str, Tensor]) -> None:
        """Refuse numbers of another flow before one is made: it may be of any size."""
        dim, plan = self.dim, self.plan
        count = weight_count(dim, plan.hidden, plan.blocks, int(self.noise_conditional))
        shapes: dict[str, tuple[int, ...]] = {
            "weights": (count,), "permutations": (plan.blocks, dim),
        }
        if plan.whiten:
            shapes |= {"mean": (dim,), "vectors": (dim, dim), "values": (dim,)}
        for name, shape in shapes.items():
            given = tuple(state[name].shape) if name in state else None
            if given != shape:
                raise InvalidInput(
                    f"tensor {name!r} is {given or 'missing'}; expected {shape} (a state belongs "
                    "to one choice of parameters)"
                )


def _training(plan: Plan) -> Training:
    return Training(
        plan.batch, plan.steps, plan.learning_rate, plan.one_cycle, plan.noise, plan.average
    )

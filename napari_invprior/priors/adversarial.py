"""Adversarial local regulariser: a critic of patches, trained against degraded ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from napari_invprior.errors import InvalidInput, JobError
from napari_invprior.jobs import Event, Job, Message, Result, ShouldStop, Stage, never
from napari_invprior.memory import require
from napari_invprior.networks.critic import PatchCritic, critic_loss
from napari_invprior.networks.draws import draw_patches
from napari_invprior.numerics.reflect import mirrored_index
from napari_invprior.numerics.separable import gaussian_kernel
from napari_invprior.parameters import Parameters, parameter
from napari_invprior.priors.base import Reference
from napari_invprior.priors.patchwise import (
    FEWEST_PATCHES,
    MAP_BLOCK,
    PREVIEW_PATCHES,
    PatchPotential,
    masked_planes,
    refuse_constant,
    too_few,
)
from napari_invprior.priors.state import check_entry
from napari_invprior.registry import register

MOST_PATCHES = 500_000
MOST_BLUR, MOST_NOISE, BLUR_TAPS = 0.3, 0.2, 5
"""Fakes: blurred by a Gaussian of up to so many px, with noise up to this level (grey)."""
GRADIENT_PENALTY = 10.0
JUDGE_EVERY = 100
EXPLODED, HALVINGS = 1e3, 3
KEPT_KERNELS, KEPT_MAPS = 8, 6
"""Float32 copies of the kernels (moments, last good ones), and of the feature maps of a batch."""

Edge = Annotated[int, Field(ge=3, le=32)]


class AdversarialParameters(Parameters):
    """Critic and training."""

    patch_size: Edge | tuple[Edge, ...] | None = parameter(
        None, "Patch edge, one number or one per axis; empty is 6 in 2D and 4 in 3D.", unit="px"
    )
    channels: Literal["separate", "joint"] = parameter(
        "separate", "Channels as images of their own, or all in one patch.", advanced=True
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = parameter(
        3000, "Training steps; the paper takes ten passes over all patches."
    )
    batch: Annotated[int, Field(ge=2, le=65536)] = parameter(
        64, "Good patches, and as many degraded ones, per step.", advanced=True
    )
    learning_rate: Annotated[float, Field(ge=1e-8, le=0.1)] = parameter(
        3e-4, "First step of Adam; it falls to zero (the paper: 1e-4, constant).", advanced=True
    )
    width: Annotated[int, Field(ge=1, le=1024)] | None = parameter(
        None,
        "Feature maps of the first layer, the second has twice as many; empty is 64 in 2D and 16 "
        "in 3D.",
        advanced=True,
    )


@register(
    kind="prior",
    name="adversarial",
    title="Adversarial critic (ALR)",
    papers=("2312.16611",),
    inputs=("references",),
    outputs=("prior",),
    needs_references=True,
)
class AdversarialRegulariser(PatchPotential):
    """A critic that is large on good patches; its potential is minus the critic.

    The critic learns to tell reference patches from the same ones blurred and with noise; a
    gradient penalty keeps its slope near one, so that the potential grows about as the distance
    to the good patches.

    Examples
    --------
    >>> from napari_invprior.jobs import run
    >>> image = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(0))
    >>> chosen = AdversarialParameters(steps=20, width=8)
    >>> prior = run(AdversarialRegulariser(chosen, ndim=2).fit([Reference(image)]))
    >>> prior.g(image[None]).shape
    torch.Size([1])
    """

    Parameters = AdversarialParameters
    parameters: AdversarialParameters
    is_density = False
    weight_scale = 120.0
    previews = "degraded patches it met"

    def __init__(
        self,
        parameters: AdversarialParameters,
        *,
        ndim: int,
        channels: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(parameters, ndim=ndim, channels=channels, device=device)
        if min(self.patch) < 3:
            raise InvalidInput(f"patch_size = {self.patch}: a critic needs at least 3 px per axis")
        width = parameters.width or (64 if ndim == 2 else 16)
        self._widths = width, 2 * width
        self._critic: PatchCritic | None = None

    # --- use --------------------------------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        return self._critic is not None

    @property
    def critic(self) -> PatchCritic:
        """The trained critic."""
        if self._critic is None:
            raise InvalidInput("the critic is not trained yet; call fit with references")
        return self._critic

    @torch.no_grad()
    def potential(self, patches: Tensor) -> Tensor:
        parts = patches.split(MAP_BLOCK, 1)
        return torch.cat([self.critic(part) for part in parts]).neg_()

    def potential_and_grad(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        values = patches.new_empty(patches.shape[1])
        gradient = torch.empty_like(patches)
        for start in range(0, patches.shape[1], MAP_BLOCK):
            here = slice(start, start + MAP_BLOCK)
            values[here], gradient[:, here] = self.critic.value_and_grad(patches[:, here])
        return values.neg_(), gradient.neg_()

    # --- learning ---------------------------------------------------------------------------

    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        generator = torch.Generator().manual_seed(seed)
        self._require_memory()
        train, held_out = self._patches(references, generator)
        critic = self._fresh(generator)
        if self._critic is not None:
            critic.load_state_dict(self._critic.state_dict())
        yield from self._train(critic, train, held_out, generator, should_stop)
        fakes = self._degraded(held_out[:, :PREVIEW_PATCHES], generator)
        yield self.preview(fakes)
        yield Result(self)

    def _require_memory(self) -> None:
        """Refuse batches of patches that cannot be held with all their feature maps."""
        chosen = self.parameters
        kernels = math.prod(self._widths) * 3**self.ndim
        maps = 2 * chosen.batch * self._widths[0] * math.prod(self.patch)
        require(
            4 * (KEPT_KERNELS * kernels + KEPT_MAPS * maps),
            f"a training step with batch {chosen.batch} and width {self._widths[0]}",
            "lower batch, width or patch_size",
        )

    def _fresh(self, generator: torch.Generator) -> PatchCritic:
        critic = PatchCritic(self.joint_channels, self.patch, self._widths, generator)
        return critic.to(self.device)

    def _patches(
        self, references: Sequence[Reference], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Training and held-out patches as rows and columns."""
        planes = masked_planes(references, self)
        draws = draw_patches(planes, self.patch, generator, MOST_PATCHES)
        if draws.distinct < FEWEST_PATCHES or 0 in (len(draws.train), len(draws.held_out)):
            raise too_few(draws.distinct, self.patch)
        refuse_constant(draws.train)
        index = torch.randint(len(draws.held_out), (1024,), generator=generator)
        held_out = draws.held_out[index].T.contiguous()
        return draws.train.to(self.device), held_out.to(self.device)

    def _train(
        self,
        critic: PatchCritic,
        train: Tensor,
        held_out: Tensor,
        generator: torch.Generator,
        should_stop: ShouldStop,
    ) -> Iterator[Event]:
        """Adam on the critic's loss; the critic is taken over at regular intervals."""
        chosen = self.parameters
        stage = Stage("train", chosen.steps)
        optimiser = torch.optim.Adam(
            critic.parameters(), lr=chosen.learning_rate, betas=(0.5, 0.999)
        )
        losses: dict[str, float] = {}
        rate, good = chosen.learning_rate, copy.deepcopy(critic.state_dict())
        for step in range(chosen.steps):
            rows = torch.randint(len(train), (chosen.batch,), generator=generator)
            real = train[rows.to(train.device)].T.contiguous()
            fake = self._degraded(real, generator)
            for group in optimiser.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * step / chosen.steps))
                group["lr"] = rate * decay
            loss, gap = critic_loss(critic, real, fake, GRADIENT_PENALTY, generator)
            if not abs(loss.item()) < EXPLODED:
                rate /= 2
                if rate < chosen.learning_rate / 2**HALVINGS:
                    raise JobError(
                        f"the critic diverged again and again (loss {loss.item():.3g}); lower "
                        f"learning_rate from {chosen.learning_rate:g}"
                    )
                yield Message(f"the critic diverged: step halved to {rate:g}", "warning")
                critic.load_state_dict(good)
                optimiser.state.clear()
                continue
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses["train"] = -float(gap)
            if (step + 1) % JUDGE_EVERY == 0 or step + 1 == chosen.steps:
                losses["held_out"] = -self._gap(critic, held_out)
                self._take_over(critic)
                good = copy.deepcopy(critic.state_dict())
            if should_stop():
                self._take_over(critic)
                break
            if stage.due():
                yield stage.progress(step + 1, **losses)
        yield stage.progress(step + 1, **losses)

    def _take_over(self, critic: PatchCritic) -> None:
        if self._critic is None:
            self._critic = self._fresh(torch.Generator())
            self._critic.requires_grad_(False)
        self._critic.load_state_dict(critic.state_dict())

    @torch.no_grad()
    def _gap(self, critic: PatchCritic, held_out: Tensor) -> float:
        """``E D(real) - E D(fake)`` on held-out patches and always the same fakes."""
        fake = self._degraded(held_out, torch.Generator().manual_seed(1))
        return float(critic(held_out).mean() - critic(fake).mean())

    def _degraded(self, patches: Tensor, generator: torch.Generator) -> Tensor:
        """Patches (d, N) blurred and with noise; both levels are drawn once for all of them."""
        blur, noise = torch.rand(2, generator=generator).tolist()
        kernel = gaussian_kernel(BLUR_TAPS, max(1e-3, MOST_BLUR * blur)).to(patches)
        x = patches.view(self.joint_channels, *self.patch, -1)
        for axis, edge in enumerate(self.patch, 1):
            reach = BLUR_TAPS // 2
            wide = x.index_select(axis, mirrored_index(edge, (reach, reach)).to(x.device))
            x = torch.stack(
                [tap * wide.narrow(axis, k, edge) for k, tap in enumerate(kernel.tolist())]
            ).sum(0)
        draw = torch.randn(patches.shape, generator=generator).to(patches)
        return x.reshape(patches.shape) + MOST_NOISE * noise * draw

    # --- keeping ----------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        return {name: value.cpu().clone() for name, value in self.critic.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        shapes = PatchCritic.shapes(self.joint_channels, self.patch, self._widths)
        for layer, shape in enumerate(shapes):
            check_entry(state, f"layers.{layer}", shape, "critic")
        critic = self._fresh(torch.Generator())
        critic.load_state_dict({name: state[name] for name in critic.state_dict()})
        self._critic = critic.requires_grad_(False)

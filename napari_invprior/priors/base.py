"""What a prior must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from napari_invprior.jobs import Job, Result, ShouldStop, never
from napari_invprior.parameters import Parameters as Declaration
from napari_invprior.physics.base import Physics
from napari_invprior.physics.noise import Noise


@dataclass(frozen=True)
class Reference:
    """One example image, normalised to about [0, 1].

    Attributes
    ----------
    image : Tensor
        (C, *space), finite where ``mask`` is true.
    mask : Tensor or None
        Boolean, (*space); only patches wholly inside are used. All of the image when None.
    weight : float
        How much one patch of this reference counts beside one of another (1 for all alike).
    pair : Tensor or None
        The poor image (C, *space) of the same place, measured or simulated, where it is known.
    """

    image: Tensor
    mask: Tensor | None = None
    weight: float = 1.0
    pair: Tensor | None = None


@dataclass(frozen=True)
class Measurement:
    """The data at hand and how they came about, for priors that learn for one operator.

    Attributes
    ----------
    y : Tensor or None
        (frames, C, *space), normalised; None when a prior is trained without an observation.
    physics, noise
        The forward operator and the noise.
    """

    y: Tensor | None
    physics: Physics
    noise: Noise


@dataclass(frozen=True)
class Map:
    """What a prior has to say about each sample of an image.

    Attributes
    ----------
    name : str
        Name of the layer.
    values : Tensor
        (B, 1, *space) on the image's grid, normalised where they are grey values. More axes may
        lead, (S, B, 1, *space): a stack to leaf through.
    kind : str
        ``"image"`` or ``"labels"``.
    unit : str
        What the values are: ``"own"``, a number of the prior's own; ``"image"``, grey values,
        with all channels of the image, (..., B, C, *space); ``"difference"``, a difference of grey
        values, such as a standard deviation.
    """

    name: str
    values: Tensor
    kind: Literal["image", "labels"] = "image"
    unit: Literal["own", "image", "difference"] = "own"


class Prior(ABC):
    """A function of images that is small for plausible ones.

    Parameters
    ----------
    parameters : Parameters
        An instance of ``cls.Parameters``.
    ndim, channels : int
        Space dimensions and channels of the images.
    device : str
        Where the parameters of the prior live.
    """

    Parameters: ClassVar[type[Declaration]]
    kind: ClassVar[str]
    name: ClassVar[str]
    weight_scale: ClassVar[float] = 1.0
    """Usual weight of this prior over that of a negative log-likelihood (the unit of ``g``)."""
    needs_measurement: ClassVar[bool] = False
    """Whether `fit` takes a `Measurement` as ``measurement``: the prior serves one operator."""
    optimises: ClassVar[bool] = True
    """Whether `fit` brings a loss down, so that there is a curve to follow."""
    previews: ClassVar[str] = "generated patches"
    """What the patches are that `fit` shows."""
    has_gradient: ClassVar[bool] = True
    """Whether there are `g` and `grad`; some networks only draw images."""
    is_density: ClassVar[bool] = False
    """Whether ``exp(-g)`` of one patch is its density."""
    adapts: ClassVar[bool] = False
    """Whether the potential follows the image in a run; `g` is then of one image."""

    def __init__(
        self, parameters: Declaration, *, ndim: int, channels: int = 1, device: str = "cpu"
    ) -> None:
        self.parameters, self.ndim, self.channels = parameters, ndim, channels
        self.device = torch.device(device)

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether the prior can be used."""

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Smallest and largest value that the prior learnt from, where it remembers them."""
        return None

    @abstractmethod
    def fit(
        self, references: Sequence[Reference], *, seed: int = 0, should_stop: ShouldStop = never
    ) -> Job:
        """Learn from references; a prior that is fitted already continues from where it is.

        Where ``needs_measurement`` is true, there is one more keyword, ``measurement``: the
        `Measurement` at hand, or None.

        The state changes only when something better is known: closing the job keeps the best
        state so far. The `Result` is the prior itself.
        """

    @abstractmethod
    def g(self, x: Tensor) -> Tensor:
        """The potential of each image of the batch: (B,)."""

    @abstractmethod
    def grad(self, x: Tensor) -> Tensor:
        """Gradient of ``g`` summed over the batch, shaped like ``x``."""

    def hold(self, held: bool) -> None:  # noqa: B027 (most potentials follow nothing)
        """Keep what follows the image as it is (or no longer), so that ``g`` is one function."""

    def for_run(self) -> Prior:
        """What one reconstruction works with: a copy where the prior adapts itself to the image."""
        return self

    def settled_on(self, x: Tensor) -> Prior:
        """The prior with the potential that suits an image (1, C, *space), the same from now on.

        Itself, where the potential follows nothing.
        """
        return self

    @property
    def period(self) -> int:
        """Images cut at multiples of so many samples are treated as they are in the whole."""
        return 1

    def start(self, y: Tensor, physics: Physics) -> Tensor:
        """A first image for data ``y``; `Physics.start` unless the prior knows a better one."""
        return physics.start(y)

    def advice(self, space: Sequence[int]) -> str:
        """What to consider before reconstructing an image of this shape; empty for nothing."""
        return ""

    def maps(
        self, x: Tensor, measurement: Measurement | None = None, *, seed: int = 0
    ) -> Job:
        """What the prior has to say about each sample of ``x``; the `Result` is a list of `Map`.

        Parameters
        ----------
        x : Tensor
            A reconstruction (B, C, *space).
        measurement : Measurement, optional
            The data that it was made from.
        seed : int
            Seed of what is drawn: that of the reconstruction.
        """
        yield Result([])

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All numbers that `load_state` needs (CPU tensors)."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state over; refuses wrong shapes, wrong types and NaN by name."""

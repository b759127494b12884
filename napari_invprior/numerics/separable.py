"""Separable linear operators: one small matrix per axis, in any dimension and with any boundary.

A blur with a Gaussian followed by sampling is ``A = A_1 (x) ... (x) A_d`` with banded matrices
``A_i``. Products, adjoints and the exact proximal step cost a few small matrix products; the
proximal step needs only the eigen-decompositions of the small ``A_i A_i^T``, whatever the
boundary rule is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_invprior.numerics.reflect import mirrored_index

NARROWEST = 1e-6
"""Samples; a Gaussian this narrow is a spike in every arithmetic."""


def gaussian_kernel(size: int, sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normalised Gaussian of ``size`` taps, centred at ``(size - 1) / 2``; a spike for sigma 0.

    Examples
    --------
    >>> gaussian_kernel(2, 1e-300).tolist(), gaussian_kernel(3, 0).tolist()
    ([0.5, 0.5], [0.0, 1.0, 0.0])
    """
    squares = (torch.arange(size, dtype=dtype) - (size - 1) / 2) ** 2
    squares -= squares.min()  # the largest tap is 1 however narrow the Gaussian
    kernel = torch.exp(-0.5 * squares / max(sigma, NARROWEST) ** 2)
    return kernel / kernel.sum()


def sampling_matrix(
    size: int, kernel: Tensor, factor: int, before: int, boundary: str
) -> Tensor:
    """Matrix of ``y_j = sum_k h_k x[j * factor + k - before]`` along one axis.

    Parameters
    ----------
    size : int
        Samples of ``x``; a multiple of ``factor`` unless ``boundary`` is ``"valid"``.
    kernel : Tensor
        Taps ``h``.
    factor : int
        Sampling step.
    before : int
        Taps to the left of the sample at ``j * factor``.
    boundary : {"circular", "valid", "reflect"}
        ``"reflect"`` mirrors without repeating the edge, as often as the kernel needs.
    """
    taps = len(kernel)
    count = (size - taps) // factor + 1 if boundary == "valid" else size // factor
    rows = torch.arange(count)[:, None].expand(count, taps)
    columns = torch.arange(count)[:, None] * factor + torch.arange(taps) - before
    if boundary == "circular":
        columns = columns % size
    elif boundary == "reflect":
        columns = mirrored_index(size, (before, taps))[columns + before]
    matrix = torch.zeros((count, size), dtype=kernel.dtype)
    matrix.index_put_((rows, columns), kernel.expand(count, taps), accumulate=True)
    return matrix


def apply_matrices(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply the last ``len(matrices)`` axes of ``x`` by one matrix each."""
    ndim = len(matrices)
    for axis, matrix in enumerate(matrices):
        x = torch.movedim(
            F.linear(torch.movedim(x, axis - ndim, -1), matrix), -1, axis - ndim
        )
    return x


class SeparableOperator:
    """``A = A_1 (x) ... (x) A_d`` on the last ``d`` axes.

    Examples
    --------
    >>> h = gaussian_kernel(4, 1.0)
    >>> A = SeparableOperator([sampling_matrix(8, h, 2, 1, "circular")] * 2)
    >>> A.forward(torch.ones(1, 1, 8, 8, dtype=torch.float64)).shape
    torch.Size([1, 1, 4, 4])
    """

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        self.matrices = [m.contiguous() for m in matrices]
        self.transposed = [m.T.contiguous() for m in matrices]
        self._eigen: tuple[list[Tensor], list[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``A x``."""
        return apply_matrices(x, self.matrices)

    def adjoint(self, y: Tensor) -> Tensor:
        """``A^T y``."""
        return apply_matrices(y, self.transposed)

    def _spectrum(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Eigenvectors of each ``A_i A_i^T``, their transposes, and all products of values."""
        if self._eigen is None:
            pairs = [torch.linalg.eigh(m.double() @ m.double().T) for m in self.matrices]
            values = pairs[0][0].clamp_min(0)
            for line, _ in pairs[1:]:
                values = values[..., None] * line.clamp_min(0)
            like = self.matrices[0]
            vectors = [v.to(like) for _, v in pairs]
            self._eigen = vectors, [v.T.contiguous() for v in vectors], values.to(like)
        return self._eigen

    @property
    def norm(self) -> float:
        """Largest singular value."""
        return float(self._spectrum()[2].max().sqrt())

    def solve_normal(self, y: Tensor, mu: float) -> Tensor:
        """``(A A^T + mu I)^-1 y``, exact; the pseudo-inverse for ``mu`` = 0."""
        vectors, transposed, values = self._spectrum()
        shifted = values + mu
        floor = values.max() * torch.finfo(values.dtype).eps * max(values.shape)
        inverse = torch.where(shifted > floor, 1 / shifted.clamp_min(floor), 0 * shifted)
        return apply_matrices(apply_matrices(y, transposed) * inverse, vectors)

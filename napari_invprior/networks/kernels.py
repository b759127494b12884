"""The coupling flow by hand: potential, its gradient and the weight gradient, without autograd.

What makes it fast on a CPU: columns in blocks that stay in cache, buffers and views made once, one
matrix product per layer (the bias rides along as a row of ones), in-place point operations, no
gradient for frozen weights, and one flat vector for the weight gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from napari_invprior.networks.coupling import CLAMP, SLOPE, CouplingFlow, SubNet

FEW_COLUMNS = 64
"""Up to here columns stored one after the other are faster (by up to two), except for what the
square layer and the last one write: they are faster by half into columns side by side."""
_relu_back = torch.ops.aten.threshold_backward.grad_input


class _SquareLayer:
    """The ``h x h`` layer of a sub-net, nearly all of its arithmetic."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix, self._transposed = matrix, matrix[:, :-1].T

    def refresh(self) -> None:
        """Take the present weights over."""

    def forward(self, hidden: Tensor, out: Tensor) -> None:
        """From ``hidden`` with its row of ones."""
        torch.mm(self._matrix, hidden, out=out)

    def backward(self, g: Tensor, out: Tensor) -> None:
        torch.mm(self._transposed, g, out=out)


class _LowSquareLayer(_SquareLayer):
    """The same in a short type, through buffers of it: (h + 1, columns) and (h, columns)."""

    def __init__(self, matrix: Tensor, given: Tensor, made: Tensor) -> None:
        super().__init__(matrix.to(given.dtype))
        self._weights, self._in, self._out = matrix, given, made

    def refresh(self) -> None:
        self._matrix.copy_(self._weights)

    def forward(self, hidden: Tensor, out: Tensor) -> None:
        self._in.copy_(hidden)
        out.copy_(torch.mm(self._matrix, self._in, out=self._out))

    def backward(self, g: Tensor, out: Tensor) -> None:
        self._in[:-1].copy_(g)
        out.copy_(torch.mm(self._transposed, self._in[:-1], out=self._out))


class _HalfStep:
    """One half step ``u = (v - t) exp(-s)`` of a block, ``(s, t)`` being the sub-net of ``read``.

    Parameters
    ----------
    net, gradient : SubNet
        Weights, and where their gradient goes (None for frozen weights).
    square : _SquareLayer
        The middle layer of ``net``.
    v, u, read, angle : Tensor
        Data, latent, rows that the sub-net sees (the last one is of ones), and
        ``atan(raw / CLAMP)``, which is the log-scale up to a constant.
    hidden : tuple of Tensor
        Two hidden layers (h + 1, columns) that end with a row of ones, raw scales and shifts
        ``(2 rows of v, columns)``, and ``exp(-s)``.
    g, g_read : Tensor
        Where `backward` finds d/du and leaves d/dv, and where it adds what reaches ``read``.
    scratch : tuple of Tensor
        Two (h, columns) buffers and one (rows of v or more, columns), for all half steps.
    """

    def __init__(
        self,
        net: SubNet,
        gradient: SubNet | None,
        square: _SquareLayer,
        v: Tensor,
        u: Tensor,
        read: Tensor,
        angle: Tensor,
        hidden: tuple[Tensor, Tensor, Tensor, Tensor],
        g: Tensor,
        g_read: Tensor,
        scratch: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        self._net, self._gradient, self._square = net, gradient, square
        self._v, self._u, self._read, self._angle = v, u, read, angle
        self._full1, self._full2, self._out, self._decay = hidden
        self._hidden1, self._hidden2 = self._full1[:-1], self._full2[:-1]
        self._raw, self._shift = self._out[: len(v)], self._out[len(v) :]
        self._g, self._g_read = g, g_read
        self._g2, self._g1, self._change = *scratch[:2], scratch[2][: len(v)]
        self._third, self._first = net.third[:, :-1].T, net.first[:, : len(g_read)].T
        self._columns2, self._columns1 = self._full2.T, self._full1.T
        self._columns0 = read.T
        # Python numbers would be made tensors of this type in each call.
        self._unclamp, self._fall = v.new_tensor(1 / CLAMP), v.new_tensor(-CLAMP * SLOPE)
        self._one = v.new_tensor(1.0)

    def forward(self) -> None:
        """Fill ``u`` and ``angle``."""
        torch.mm(self._net.first, self._read, out=self._hidden1)
        self._hidden1.relu_()
        self._square.forward(self._full1, self._hidden2)
        self._hidden2.relu_()
        torch.mm(self._net.third, self._full2, out=self._out)
        torch.atan(self._raw.mul_(self._unclamp), out=self._angle)
        torch.mul(self._angle, self._fall, out=self._decay).exp_()
        torch.sub(self._v, self._shift, out=self._u).mul_(self._decay)

    def backward(self, weight: Tensor) -> None:
        """Turn ``g`` from d/du into d/dv of the potential times ``weight / SLOPE``.

        Spoils what `forward` left.
        """
        raw, g2, g1 = self._raw, self._g2, self._g1
        # d/ds = weight - g u, and ds/draw = SLOPE / (1 + (raw / CLAMP)^2); raw is divided already.
        torch.addcmul(weight, self._g, self._u, value=-SLOPE, out=self._change)
        torch.div(self._change, torch.addcmul(self._one, raw, raw, out=raw), out=raw)
        torch.neg(self._g.mul_(self._decay), out=self._shift)
        torch.mm(self._third, self._out, out=g2)
        _relu_back(g2, self._hidden2, 0, grad_input=g2)
        self._square.backward(g2, g1)
        _relu_back(g1, self._hidden1, 0, grad_input=g1)
        self._g_read.addmm_(self._first, g1)
        if self._gradient is not None:
            torch.mm(self._out, self._columns2, out=self._gradient.third)
            torch.mm(g2, self._columns1, out=self._gradient.second)
            torch.mm(g1, self._columns0, out=self._gradient.first)


class _Block:
    """One coupling block: permuted data ``v``, latent ``u``, and the two half steps between.

    Rows of ``v``: second half, first half, condition, ones; of ``u``: first half, second half,
    condition, ones. So each sub-net reads one slice.
    """

    def __init__(self, v: Tensor, u: Tensor, rows: Tensor, order: Tensor) -> None:
        self.v, self.u, self.rows, self.order = v, u, rows, order
        dim = len(rows)
        self.data, self.latent = v[:dim], u[:dim]
        self.conditions = (v[dim:-1], u[dim:-1])
        self.steps: list[_HalfStep] = []


class FlowKernel:
    """Hand-written passes of a `CouplingFlow` for a fixed number of columns.

    Parameters
    ----------
    flow : CouplingFlow
        The flow; its weights are used as they are at the time of each pass.
    columns : int
        Number of columns per pass.
    weights : Tensor, optional
        Flat weights to use instead of ``flow.weights``.
    gradient : Tensor, optional
        Flat vector that `backward` writes the weight gradient to; none for frozen weights.
    keep : bool
        Keep what `backward` needs; without it all blocks share one set of hidden layers.
    low : torch.dtype, optional
        Type for the ``h x h`` products, such as ``torch.bfloat16`` where the hardware has units
        for it. Log-determinants and everything else stay in the type of the weights.

    Examples
    --------
    >>> flow = CouplingFlow(4, hidden=8, blocks=2)
    >>> kernel = FlowKernel(flow, columns=3)
    >>> x = torch.arange(12.0).view(4, 3) / 10
    >>> nll = kernel.potential(x)
    >>> z, log_det = flow.inverse(x)
    >>> bool(torch.allclose(nll, 0.5 * z.square().sum(0) - log_det, atol=1e-5))
    True
    """

    def __init__(
        self,
        flow: CouplingFlow,
        columns: int,
        *,
        weights: Tensor | None = None,
        gradient: Tensor | None = None,
        keep: bool = True,
        low: torch.dtype | None = None,
    ) -> None:
        self._flow, self._columns = flow, columns
        weights = flow.weights if weights is None else weights
        self._options: dict[str, Any] = {"dtype": weights.dtype, "device": weights.device}
        self._angles = self._buffer(flow.blocks * flow.dim)
        self._gradients = (self._buffer(flow.dim), self._buffer(flow.dim))
        self._squares: list[_SquareLayer] = []
        self._blocks = self._build(weights, gradient, keep, low)

    def _buffer(
        self, rows: int, dtype: torch.dtype | None = None, *, side_by_side: bool = False
    ) -> Tensor:
        """Ones (rows, columns); few columns lie one after the other unless told otherwise."""
        options = self._options if dtype is None else self._options | {"dtype": dtype}
        if self._columns <= FEW_COLUMNS and not side_by_side:
            return torch.ones(self._columns, rows, **options).T
        return torch.ones(rows, self._columns, **options)

    def _build(
        self, weights: Tensor, gradient: Tensor | None, keep: bool, low: torch.dtype | None
    ) -> list[_Block]:
        flow = self._flow
        first, second = flow.first_half, flow.dim - flow.first_half
        nets = flow.nets(weights)
        grads = [(None, None)] * flow.blocks if gradient is None else flow.nets(gradient)
        angles = iter(self._angles.split([second, first] * flow.blocks))
        second_hidden = self._buffer(flow.hidden, side_by_side=True)
        scratch = (second_hidden, self._buffer(flow.hidden), self._buffer(second))
        short = () if low is None else tuple(self._buffer(flow.hidden + i, low) for i in (1, 0))
        shared: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

        def hidden(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            if keep or size not in shared:
                shared[size] = (
                    self._buffer(flow.hidden + 1),
                    self._buffer(flow.hidden + 1, side_by_side=True),
                    self._buffer(2 * size, side_by_side=True),
                    self._buffer(size),
                )
            return shared[size]

        def square(net: SubNet) -> _SquareLayer:
            made = _LowSquareLayer(net.second, *short) if short else _SquareLayer(net.second)
            self._squares.append(made)
            return made

        blocks = []
        for index, order in enumerate(flow.permutations):
            undo = torch.argsort(order)
            size = flow.dim + flow.condition + 1
            v, u = self._buffer(size), self._buffer(size)
            block = _Block(v, u, torch.cat((undo[first:], undo[:first])), order)
            u1, u2 = block.latent[:first], block.latent[first:]
            v2, v1 = block.data[:second], block.data[second:]
            g1, g2 = self._gradients[index % 2].split([first, second])
            (net1, net2), (grad1, grad2) = nets[index], grads[index]
            block.steps = [
                _HalfStep(
                    net2, grad2, square(net2), v2, u2, v[second:], next(angles),
                    hidden(second), g2, g1, scratch,
                ),
                _HalfStep(
                    net1, grad1, square(net1), v1, u1, u[first:], next(angles),
                    hidden(first), g1, g2, scratch,
                ),
            ]
            blocks.append(block)
        return blocks

    def latent(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Data to latent; a view of a buffer, valid until the next pass: (dim, columns)."""
        for layer in self._squares:
            layer.refresh()
        for block in reversed(self._blocks):
            torch.index_select(x, 0, block.rows, out=block.data)
            if condition is not None:
                for rows in block.conditions:
                    rows.copy_(condition)
            for step in block.steps:
                step.forward()
            x = block.latent
        return x

    def potential(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """``|z|^2/2 - log|det dz/dx|`` of each column: (columns,)."""
        z = self.latent(x, condition)
        log_scale = self._angles.sum(0).mul_(CLAMP * SLOPE)
        return torch.linalg.vecdot(z, z, dim=0).mul_(0.5).add_(log_scale)

    def backward(self, weight: float = 1.0) -> Tensor:
        """Gradient of ``weight * potential.sum()`` with respect to the columns just passed.

        Writes the weight gradient to ``gradient`` where there is one. The result is a buffer,
        valid until the next pass: (dim, columns).
        """
        torch.mul(self._blocks[0].latent, weight, out=self._gradients[0])
        scaled = self._angles.new_tensor(SLOPE * weight)
        for index, block in enumerate(self._blocks):
            for step in reversed(block.steps):
                step.backward(scaled)
            g, following = self._gradients[index % 2], self._gradients[1 - index % 2]
            torch.index_select(g, 0, block.order, out=following)
        return following

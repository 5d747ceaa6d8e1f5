"""What the gradient of each parameter of a layer is, given the layer's input and the gradient of its output.

A rule yields contributions, one or more per parameter, that are summed over all calls of the layer. Weight matrices
come as the pair whose outer product they are (``Outer``), so that a fused kernel can sketch the product without forming
it; the rest, small by nature, come as gradients (``Direct``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.normalization import RMSNorm as DiffusersRMSNorm
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from journey.ops.checks import INPUT_DTYPES
from journey.ops.geometry import ConvGeometry
from journey.ops.norm import norm_grads
from journey.ops.weight_grad import TILE_FLOATS, sum_positions


class Outer(NamedTuple):
    """The gradient of a weight as layer input and output gradient, see ``journey.ops.sketch_outer_``."""

    parameter: str
    a: Tensor
    g: Tensor
    conv: ConvGeometry | None


class Direct(NamedTuple):
    """Rows ``row_begin ...`` of the gradient of a parameter, in its own order.

    Of each group, or of each row of the batch, which is still to be summed (``sum_groups``).
    [num_groups or num_rows, rows, cols]
    """

    parameter: str
    grads: Tensor
    row_begin: int = 0


class Summed(NamedTuple):
    """The gradient of a bias as the output gradient that it is the sum of, over positions (``sum_positions``).

    The kernel that reads the output gradient for the weight may sum it too.
    """

    parameter: str
    g: Tensor
    channels_last: bool

    def direct(self) -> Direct:
        """Return the sums of each row."""
        return Direct(self.parameter, sum_positions(self.g, self.channels_last).unsqueeze(1))


Contribution = Outer | Direct
Rule = Callable[[nn.Module, Tensor, Tensor, int], Iterator[Contribution | Summed]]


def sum_groups(grads: Tensor, num_groups: int) -> Tensor:
    """Return gradients of groups, or of each row summed over its group. [num_groups, *grads.shape[1:]]"""
    return grads if grads.shape[0] == num_groups else grads.unflatten(0, (num_groups, -1)).sum(1)


def of_groups(contribution: Contribution | Summed, num_groups: int) -> Contribution:
    """Return a contribution that is a pair of tensors, or gradients of groups."""
    contribution = contribution.direct() if isinstance(contribution, Summed) else contribution
    if isinstance(contribution, Outer):
        return contribution
    return contribution._replace(grads=sum_groups(contribution.grads, num_groups))


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule for a module, by the forward function it runs; None when there is none.

    A subclass that keeps its parent's forward keeps the rule; one with a forward of its own has no rule, whatever its
    class says.
    """
    for layer, rule in _RULES.items():
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return None if _is_excluded(module) else rule
    return None


def _is_excluded(module: nn.Module) -> bool:
    if isinstance(module, NonDynamicallyQuantizableLinear):  # nn.MultiheadAttention never calls its out_proj
        return True
    if isinstance(module, nn.Embedding):
        return module.max_norm is not None or module.scale_grad_by_freq
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.padding_mode not in _PADDING_MODES


def _linear(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Outer | Summed]:
    a = x.reshape(x.shape[0], -1, x.shape[-1])
    g = g.reshape(g.shape[0], -1, g.shape[-1])
    yield Outer("weight", a, g, None)
    if module.bias is not None:
        yield Summed("bias", g, channels_last=True)


_NORM_PARAMETERS = ("weight", "bias")
# Where norms are measured by ``norm_grads``. On the CPU torch's operations are as fast, and their bits are kept.
_NORM_KERNELS = ["cuda"]

# Every pass asks for those of all layers.
_geometry = lru_cache(maxsize=1 << 12)(ConvGeometry)
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def _conv(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Outer | Summed]:
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    both_sides = module._reversed_padding_repeated_twice
    padding = tuple(both_sides[::-2])
    symmetric = all(left == right for left, right in zip(both_sides[::2], both_sides[1::2], strict=True))
    if module.padding_mode != "zeros" or not symmetric:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, both_sides, mode=mode)
        padding = (0,) * len(padding)
    conv = _geometry(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    # Where the stride does not divide, the last input positions are seen by no output position.
    yield Outer("weight", x, g, conv)
    if module.bias is not None:
        yield Summed("bias", g, channels_last=False)


def _conv_transpose(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Outer | Summed]:
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    padding = tuple(int(pad) for pad in module.padding)
    conv = _geometry(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    # The adjoint of a convolution: it reads what the convolution would write. An output padding of a whole stride means
    # positions that the convolution would write and that this layer takes as zero.
    extra = [pad // stride for pad, stride in zip(module.output_padding, module.stride, strict=True)]
    if any(extra):
        x = F.pad(x, [side for pad in reversed(extra) for side in (0, pad)])
    yield Outer("weight", g, x, conv)
    if module.bias is not None:
        yield Summed("bias", g, channels_last=False)


def _group_norm(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Contribution]:
    assert isinstance(module, nn.GroupNorm)
    if module.weight is None:
        return
    if _goes_to_kernel(x):
        x, g = (t.reshape(*t.shape[:2], -1) for t in (x, g))
        grads = norm_grads(x, g, groups=module.num_groups, eps=module.eps)
        yield from (Direct(name, grads[:, i : i + 1]) for i, name in enumerate(_NORM_PARAMETERS))
        return
    # Torch's own kernels: the forward one gives mean and inverse deviation, the backward one weight and bias gradients
    # in one pass, summed over the batch. Rows enter it as channels of a batch of one, so that nothing is summed over
    # rows. Three dimensions: an image of one pixel may count as channels last, where the backward kernel would read
    # beyond it.
    num_rows, channels = x.shape[:2]
    x, g = (t.float().reshape(1, num_rows * channels, -1).contiguous() for t in (x, g))
    positions = x.shape[2]
    _, mean, inverse_deviation = torch.ops.aten.native_group_norm(
        x, None, None, num_rows, channels, positions, module.num_groups, module.eps
    )
    _, weight, bias = torch.ops.aten.native_group_norm_backward(
        g,
        x,
        mean.view(1, -1),
        inverse_deviation.view(1, -1),
        x.new_empty(num_rows * channels),  # the weight, which only the input's gradient needs
        1,
        num_rows * channels,
        positions,
        num_rows * module.num_groups,
        [False, True, True],
    )
    for parameter, per_row in zip(_NORM_PARAMETERS, (weight, bias), strict=True):
        yield Direct(parameter, per_row.view(num_rows, 1, channels))


def _layer_norm(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Contribution]:
    assert isinstance(module, nn.LayerNorm)
    if _goes_to_kernel(x):
        yield from _affine_by_kernel(module, x, g, num_groups, module.normalized_shape, module.eps, centered=True)
        return
    normalized = F.layer_norm(x.float(), module.normalized_shape, None, None, module.eps)
    yield from _affine(module, normalized, g, num_groups, module.normalized_shape)


def _rms_norm(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Contribution]:
    assert isinstance(module, nn.RMSNorm)
    eps = torch.finfo(x.dtype).eps if module.eps is None else module.eps
    if _goes_to_kernel(x):
        yield from _affine_by_kernel(module, x, g, num_groups, module.normalized_shape, eps, centered=False)
        return
    normalized = F.rms_norm(x.float(), module.normalized_shape, None, eps)
    yield from _affine(module, normalized, g, num_groups, module.normalized_shape)


def _diffusers_rms_norm(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Contribution]:
    assert isinstance(module, DiffusersRMSNorm)
    # Unlike torch's, it always normalises over the last dimension.
    if _goes_to_kernel(x) and len(module.dim) == 1:
        yield from _affine_by_kernel(module, x, g, num_groups, tuple(module.dim), module.eps, centered=False)
        return
    normalized = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + module.eps)
    yield from _affine(module, normalized, g, num_groups, tuple(module.dim))


def _affine(
    module: nn.Module, normalized: Tensor, g: Tensor, num_groups: int, shape: tuple[int, ...]
) -> Iterator[Contribution]:
    """Weight and bias of a norm whose parameters have the shape of the last dimensions."""
    rows = 1 if len(shape) == 1 else shape[0]
    for parameter, product in zip(_NORM_PARAMETERS, (normalized * g, g), strict=True):
        if getattr(module, parameter, None) is not None:
            summed = product.float().reshape(num_groups, -1, prod(shape)).sum(1)
            yield Direct(parameter, summed.reshape(num_groups, rows, -1))


def _affine_by_kernel(
    module: nn.Module, x: Tensor, g: Tensor, num_groups: int, shape: tuple[int, ...], eps: float, *, centered: bool
) -> Iterator[Contribution]:
    """The same of a norm over these dimensions, from its input. The rows of a group are positions of one."""
    x, g = (t.reshape(num_groups, -1, prod(shape)) for t in (x, g))
    grads, rows = norm_grads(x, g, centered=centered, eps=eps), 1 if len(shape) == 1 else shape[0]
    for i, parameter in enumerate(_NORM_PARAMETERS):
        if getattr(module, parameter, None) is not None:
            yield Direct(parameter, grads[:, i].unflatten(1, (rows, -1)))


def _goes_to_kernel(x: Tensor) -> bool:
    """Whether a norm is measured by the kernel that reads its input once; elsewhere torch's operations do it."""
    return x.device.type in _NORM_KERNELS and x.dtype in INPUT_DTYPES


def _embedding(module: nn.Module, x: Tensor, g: Tensor, num_groups: int) -> Iterator[Contribution]:
    assert isinstance(module, nn.Embedding)
    indices, g = x.reshape(num_groups, -1), g.float().reshape(num_groups, -1, module.embedding_dim)
    if module.padding_idx is not None:
        g = g * (indices != module.padding_idx).unsqueeze(-1)
    step = max(1, TILE_FLOATS // (num_groups * module.embedding_dim))
    for row in range(0, module.num_embeddings, step):
        count = min(step, module.num_embeddings - row)
        # Indices outside these rows fall into a row that is cut off.
        local = torch.where((indices >= row) & (indices < row + count), indices - row, count)
        grads = g.new_zeros(num_groups, count + 1, module.embedding_dim)
        grads.scatter_add_(1, local.unsqueeze(-1).expand_as(g), g)
        yield Direct("weight", grads[:, :count], row)


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.Conv3d: _conv,
    nn.ConvTranspose1d: _conv_transpose,
    nn.ConvTranspose2d: _conv_transpose,
    nn.ConvTranspose3d: _conv_transpose,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    FP32LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    DiffusersRMSNorm: _diffusers_rms_norm,
    nn.Embedding: _embedding,
}

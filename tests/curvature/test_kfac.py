"""Kronecker factors are the second moments they say, and whiten layer inputs and output gradients like the gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from curvature_models import Odd, OneLayer, Square
from models import SmallDenoiser, make_images, make_scheduler, make_unet
from torch import Tensor, nn

from journey.curvature import kfac
from journey.curvature.blocks import KroneckerBlock
from journey.curvature.ekfac import fit_ekfac
from journey.curvature.kfac import fit_kfac
from journey.curvature.pseudo_gradients import PseudoGradients
from journey.curvature.whitened import Curvature, Whitened
from journey.errors import NonFiniteGradientError
from journey.gradients.rules import Direct, Outer
from journey.measure.draws import StratifiedDraws
from journey.measure.featurizer import Featurizer
from journey.measure.measurements import TrainingLoss
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.ops.geometry import ConvGeometry
from journey.ops.weight_grad import weight_grad_tiles
from journey.projectors.base import ParameterSlot
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

IMAGES, DRAWS = make_images(5), StratifiedDraws(num_draws=2, antithetic=False)
DAMPING = 0.1


def random_block(rows: int, channels: int, seed: int = 0) -> KroneckerBlock:
    """Any positive definite factors of mean eigenvalue one."""
    generator = torch.Generator().manual_seed(seed)

    def side(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(2 * size, size, generator=generator, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(x.T @ x)
        return (values / values.mean()).float(), vectors.float()

    return KroneckerBlock(torch.tensor([0.37]), *side(rows), *side(channels))


def dense(block: KroneckerBlock, rows: int, cols: int, damping: float) -> Tensor:
    """The damped curvature that a block stands for. [rows * cols, rows * cols]."""

    def factor(values: Tensor | None, vectors: Tensor | None, size: int) -> Tensor:
        if values is None or vectors is None:
            return torch.eye(size, dtype=torch.float64)
        v = vectors.double()
        return (v @ torch.diag(values.double() + damping) @ v.T) / (1 + damping)

    outputs = factor(block.output_values, block.output_vectors, rows)
    channels = cols if block.input_values is None else len(block.input_values)
    inputs = torch.kron(  # columns are (tap, channel)
        torch.eye(cols // channels, dtype=torch.float64), factor(block.input_values, block.input_vectors, channels)
    )
    return block.scale.double() * torch.kron(outputs, inputs)


def assert_close(found: Tensor, expected: Tensor, rounding: float = 1e-5) -> None:
    assert expected.norm() > 0
    assert (found.double() - expected.double()).norm() <= rounding * expected.double().norm()


def whitened(block: KroneckerBlock, inner: Any = None) -> Whitened:
    return Whitened(Identity() if inner is None else inner, Curvature({"w": block}), DAMPING)


@pytest.mark.parametrize(("rows", "channels", "taps"), [(5, 4, 9), (6, 6, 1), (1, 7, 1)])
def test_inner_products_are_those_of_the_inverse_curvature(rows: int, channels: int, taps: int) -> None:
    block, slot = random_block(rows, channels), ParameterSlot("w", rows, channels * taps, 0)
    grads = torch.randn(3, slot.rows, slot.cols, generator=torch.Generator().manual_seed(1))
    features = torch.zeros(3, rows * channels * taps)
    for row in range(0, rows, 2):  # in tiles of rows
        whitened(block).add_(features, slot, grads[:, row : row + 2], row)
    flat = grads.flatten(1).double()
    expected = flat @ torch.linalg.solve(dense(block, slot.rows, slot.cols, DAMPING), flat.T)
    assert_close(features.double() @ features.double().T, expected)


CONVOLUTIONS = {
    "padded": ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strided": ConvGeometry((3, 2), (2, 1), (0, 1), (1, 2), 1),
    "pointwise": ConvGeometry((1, 1), (1, 1), (0, 0), (1, 1), 1),
    "line": ConvGeometry((3,), (1,), (1,), (1,), 1),
    "volume": ConvGeometry((2, 1, 2), (1, 1, 1), (1, 0, 0), (1, 1, 1), 1),
}


@pytest.mark.parametrize("inner", [Identity(), CountSketch(64)], ids=["identity", "sketch"])
@pytest.mark.parametrize("name", ["linear", *CONVOLUTIONS])
def test_whitening_the_factors_whitens_the_gradient(name: str, inner: Any) -> None:
    rows, channels, groups = 5, 4, 3
    generator, conv = torch.Generator().manual_seed(2), CONVOLUTIONS.get(name)
    if conv is None:
        taps, a = 1, torch.randn(6, 7, channels, generator=generator)
        g = torch.randn(6, 7, rows, generator=generator)
    else:
        layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[conv.spatial_dims]
        a = torch.randn(6, channels, *(6, 5, 4)[: conv.spatial_dims], generator=generator)
        kernel: Any = conv.kernel_size
        out = layer(channels, rows, kernel, conv.stride, conv.padding, conv.dilation)(a)
        taps, g = out.new_zeros(kernel).numel(), torch.randn(out.shape, generator=generator)
    slot, block = ParameterSlot("w", rows, channels * taps, 0), random_block(rows, channels)
    projector = whitened(block, inner)
    dim = inner.features_dim(rows * channels * taps)
    fused, formed = torch.zeros(groups, dim), torch.zeros(groups, dim)
    projector.add_outer_(fused, slot, a, g, conv)
    for grads, group, row in weight_grad_tiles(a, g, groups, conv):
        projector.add_(formed[group : group + len(grads)], slot, grads, row)
    assert_close(fused, formed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_whitened_to_its_own_rounding(dtype: torch.dtype) -> None:
    a, g = (torch.randn(2, 9, n, generator=torch.Generator().manual_seed(n)) for n in (4, 5))
    slot, projector = ParameterSlot("w", 5, 4, 0), whitened(random_block(5, 4))
    found, expected = torch.zeros(2, 20), torch.zeros(2, 20)
    projector.add_outer_(found, slot, a.to(dtype), g.to(dtype), None)
    projector.add_outer_(expected, slot, a.to(dtype).float(), g.to(dtype).float(), None)
    assert_close(found, expected, rounding=8 * torch.finfo(dtype).eps)


def fit(network: nn.Module, **options: Any) -> tuple[Denoiser, Curvature]:
    model = Denoiser(network, make_scheduler())
    return model, fit_kfac(model, IMAGES, **{"draws": DRAWS, "progress": False, **options})


def row_gradients(model: Denoiser, module: nn.Module, condition: Condition | None = None) -> dict[str, Tensor]:
    """Every row's pseudo-gradient, one at a time by autograd, and the layer's input and output gradient."""
    gradients = PseudoGradients(model, IMAGES, DRAWS, condition, False, 0)
    found: dict[str, list[Tensor]] = {"weight": [], "a": [], "g": []}
    for row in range(gradients.num_rows):
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor, kept: list[Tensor] = kept) -> None:
            kept.extend((args[0].detach(), output))

        handle = module.register_forward_hook(keep)
        (values,) = gradients.pseudo_losses(torch.tensor([row]))
        loss = values(slice(0, 1)).sum()
        handle.remove()
        weight, g = torch.autograd.grad(loss, [module.weight, kept[1]])  # type: ignore[list-item]
        for name, tensor in (("weight", weight), ("a", kept[0]), ("g", g)):
            found[name].append(tensor)
    return {name: torch.stack(tensors).double() for name, tensors in found.items()}


def second_moment(x: Tensor) -> Tensor:
    """Of vectors [..., dim], to a mean eigenvalue of one."""
    moment = x.reshape(-1, x.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return moment / moment.diagonal().mean()


@pytest.mark.parametrize(("network", "name"), [(SmallDenoiser, "inward"), (SmallDenoiser, "time"), (Square, "layer")])
def test_factors_and_scale_are_second_moments_of_pseudo_gradients(network: type[nn.Module], name: str) -> None:
    model, curvature = fit(network())
    block, module = curvature.blocks[f"{name}.weight"], model.network.get_submodule(name)
    assert isinstance(block, KroneckerBlock)
    rows = row_gradients(model, module)
    a, g = ((x.movedim(2, -1) if x.dim() == 5 else x) for x in (rows["a"], rows["g"]))
    for values, vectors, expected in (
        (block.input_values, block.input_vectors, second_moment(a)),
        (block.output_values, block.output_vectors, second_moment(g)),
    ):
        assert values is not None
        assert vectors is not None
        assert_close(vectors.double() @ torch.diag(values.double()) @ vectors.double().T, expected, rounding=1e-4)
    sizes = {n: p.numel() for n, p in model.network.named_parameters() if p.requires_grad}
    mean = sum(sizes[n] * b.scale.item() for n, b in curvature.blocks.items()) / sum(sizes.values()) / (1 + 1e-4)
    assert block.scale.item() == pytest.approx(rows["weight"].square().mean().item() + 1e-4 * mean, rel=1e-4)


def test_a_layer_with_independent_factors_has_its_exact_curvature() -> None:
    draws = StratifiedDraws(num_draws=400, antithetic=False)  # directions enough for the side of the outputs
    model, curvature = fit(OneLayer(), draws=draws)
    block = curvature.blocks["layer.weight"]
    assert isinstance(block, KroneckerBlock)
    mix = model.network.mix.weight.double()  # type: ignore[union-attr, operator]
    expected = mix.T @ mix
    values, vectors = block.output_values, block.output_vectors
    assert values is not None
    assert vectors is not None
    found = vectors.double() @ torch.diag(values.double()) @ vectors.double().T
    # 2,000 draws of a Wishart matrix: sqrt(5 / 2000) of the norm.
    assert_close(found, expected / expected.diagonal().mean(), rounding=0.15)


def test_what_has_no_factors_has_a_scale() -> None:
    model, curvature = fit(Odd())
    shapes = {name: block.shape for name, block in curvature.blocks.items()}
    assert shapes == {
        "line.weight": [4, 8],
        "line.bias": [0, 4],
        "time.weight": [0, 4],
        "twice.weight": [4, 4],
        "twice.bias": [0, 4],
        "groups.weight": [0, 0],
        "groups.bias": [0, 8],
    }
    assert all(block.scale > 0 for block in curvature.blocks.values())  # type: ignore[attr-defined]
    _check_engine(model, curvature)


def test_large_sides_have_no_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfac, "LARGEST_SIDE", 4)
    model, curvature = fit(SmallDenoiser())
    assert curvature.blocks["inward.weight"].shape == [0, 1]
    _check_engine(model, curvature)


def test_a_weight_that_is_also_an_embedding_has_a_scale() -> None:
    slot = ParameterSlot("w", 2, 3, 0)
    factors = kfac._Factors({"w": slot}, torch.device("cpu"))
    both = [Outer("w", torch.ones(1, 1, 3), torch.ones(1, 1, 2), None), Direct("w", torch.ones(1, 2, 3))]
    factors.add(slot, both, 1)
    assert factors.pop_block("w", 1).shape == [0, 0]


def _check_engine(model: Denoiser, curvature: Curvature) -> None:
    """Features agree with autograd's gradient of the batch, whitened."""
    featurizer = Featurizer(model, measurement=TrainingLoss(), projector=Whitened(CountSketch(64), curvature))
    times, noise = DRAWS.timesteps([0, 1], 100), DRAWS.noise([0, 1], (1, 8, 8), torch.device("cpu"))
    featurizer.features(IMAGES[:2], times, noise, check=True)


@pytest.mark.parametrize("fitted", [fit_kfac, fit_ekfac])
def test_gradients_that_are_rounding_stay_small(fitted: Callable[..., Curvature]) -> None:
    """Softmax does not change when all keys are shifted, so the key bias has a gradient of zero, up to rounding."""
    model = Denoiser(make_unet(), make_scheduler())
    curvature = fitted(model, IMAGES, draws=DRAWS, progress=False)
    projector = Whitened(Identity(), curvature)
    featurizer = Featurizer(model, measurement=TrainingLoss(), projector=projector)
    times, noise = DRAWS.timesteps([0], 100), DRAWS.noise([0], (1, 8, 8), torch.device("cpu"))
    features, _ = featurizer.features(IMAGES[:1], times, noise)
    squares = {
        name: features[0, 0, slot.offset : slot.offset + slot.rows * slot.cols].square().mean().item()
        for name, slot in featurizer.engine.slots.items()
    }
    keys = [square for name, square in squares.items() if name.endswith("to_k.bias")]
    assert keys
    assert max(keys) < 1e-6 * sorted(squares.values())[len(squares) // 2]


def test_nan_names_the_parameter() -> None:
    network = SmallDenoiser()
    with torch.no_grad():
        network.outward.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteGradientError, match=r"curvature of 'inward\.weight' is NaN"):
        fit(network)


def test_saved_and_loaded_it_is_the_same_and_damage_is_noticed(tmp_path: Path) -> None:
    _, curvature = fit(Odd())
    path = tmp_path / "curvature.safetensors"
    curvature.save(path)
    assert Curvature.load(path).fingerprint() == curvature.fingerprint()
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="SHA-256"):
        Curvature.load(path)
    path.write_bytes(damaged[:100])
    with pytest.raises(ValueError, match="damaged"):
        Curvature.load(path)


def assert_same_curvature(found: Curvature, expected: Curvature) -> None:
    """But for rounding, which may turn eigenvectors: as matrices."""
    assert found.blocks.keys() == expected.blocks.keys()
    for name, block in expected.blocks.items():
        other = found.blocks[name]
        assert isinstance(block, KroneckerBlock)
        assert isinstance(other, KroneckerBlock)
        rows, channels = (max(1, n) for n in block.shape)
        assert_close(dense(other, rows, channels, DAMPING), dense(block, rows, channels, DAMPING))


def test_batches_change_the_curvature_only_by_rounding() -> None:
    _, whole = fit(SmallDenoiser())
    _, parts = fit(SmallDenoiser(), rows_per_batch=3)
    assert_same_curvature(parts, whole)
    with pytest.raises(ValueError, match="rows_per_batch must be positive, got 0"):
        fit(SmallDenoiser(), rows_per_batch=0)

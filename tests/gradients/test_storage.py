"""Networks whose weights are stored in fewer bits than they compute in are measured as those that compute alike."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import peft
from cases import randn
from models import Images, SmallDenoiser, make_images, make_scheduler, make_unet
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import journey
from journey.errors import CoverageError, GradientCheckError
from journey.files.fingerprint import fingerprint_tensors
from journey.gradients.check import check_gradients
from journey.gradients.engine import GradientEngine
from journey.gradients.passes import kept_bytes
from journey.models.denoiser import Denoiser
from journey.models.network import check_placed
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch

STORED = [torch.float8_e4m3fn, torch.bfloat16]


class Stored(nn.Module):
    """A linear layer in eight bits, as quantisers store theirs: unsigned integers and a scale."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.register_buffer("scale", weight.abs().max() / 127)
        self.weight = nn.Parameter((weight / self.scale).round().add(128).to(torch.uint8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.weight.float() - 128) * self.scale)


class Adapted(nn.Module):
    """A stored base with an adapter in float32; the first parameter is an integer."""

    def __init__(self, base: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base = Stored(nn.Linear(64, 64)) if base is None else base
        self.down, self.up = nn.Linear(64, 2, bias=False), nn.Linear(2, 64, bias=False)
        self.config = type("Config", (), {"in_channels": 1, "sample_size": 8})()
        self.eval()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        h = x.flatten(1) * (1 + times.view(-1, 1) / 100)
        return (torch.tanh(self.base(h)) + self.up(self.down(h))).view_as(x)


def values_of(model: nn.Module) -> Any:
    times = torch.tensor([3, 50, 90])

    def values(rows: slice) -> Tensor:
        found = model(make_images(3)[rows], times[rows])
        output = found if isinstance(found, Tensor) else found.sample
        return (output - randn(3, 1, 8, 8)[rows]).square().flatten(1).mean(1)

    return values


def exact(model: nn.Module, **options: Any) -> Tensor:
    engine = GradientEngine(model, **options)
    features = torch.zeros(3, engine.num_parameters)
    engine.add_gradients_(features, values_of(model), num_rows=3, projector=Identity())
    return features


def cast(network: nn.Module, stored: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """A network under layerwise casting, and one with the same rounded weights without."""
    plain = copy.deepcopy(network)
    network.enable_layerwise_casting(storage_dtype=stored, compute_dtype=torch.float32)
    for mine, its in zip(plain.parameters(), network.parameters(), strict=True):
        mine.data = its.data.float()
    return network, plain


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("uncovered", ["error", "autograd"])
def test_layerwise_casting_changes_no_gradient(stored: torch.dtype, uncovered: str) -> None:
    network, plain = cast(make_unet(), stored)
    found, expected = exact(network, uncovered=uncovered), exact(plain)
    assert torch.equal(found, expected)
    assert next(network.parameters()).dtype == stored, "the weights were not stored again"


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_autograd_sees_weights_that_are_cast_for_their_layers_alone(stored: torch.dtype) -> None:
    network, plain = cast(make_unet(), stored)
    found, expected = (
        {
            slot.name: grad
            for slot, grad in engine.by_autograd(values_of(engine.model), slice(0, 3), 1, list(engine.slots))
        }
        for engine in (GradientEngine(network), GradientEngine(plain))
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("make", [lambda: cast(make_unet(), STORED[0])[0], Adapted], ids=["layerwise", "integers"])
def test_a_network_in_few_bits_goes_all_the_way(tmp_path: Path, make: Any) -> None:
    model = (make(), make_scheduler())
    assert Denoiser(*model).dtype == torch.float32
    features = journey.featurize(model, Images(make_images(4)), tmp_path, progress=False)
    trajectory = journey.record(model, num_inference_steps=2, progress=False)
    assert journey.score(features, trajectory, num_draws=2, progress=False).values.abs().min() > 0


def test_an_adapter_on_integers_has_the_gradients_of_one_on_what_they_stand_for() -> None:
    model = Adapted()
    plain = copy.deepcopy(model)
    layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
    layer.weight.data = (model.base.weight.float() - 128) * model.base.scale
    plain.base = layer
    assert torch.equal(exact(model), exact(plain))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.uint8, torch.float16), torch.float16),
        ((torch.float8_e4m3fn, torch.bfloat16), torch.bfloat16),
        ((torch.int8,), torch.float32),
        ((torch.complex64, torch.float64), torch.float64),
    ],
    ids=str,
)
def test_what_a_network_computes_in_is_no_storage(dtypes: tuple[torch.dtype, ...], expected: torch.dtype) -> None:
    network = SmallDenoiser()
    kept = list(network.parameters())
    for p, dtype in zip(kept, dtypes, strict=False):
        p.requires_grad_(False)
        p.data = p.data.to(dtype)
    for p in kept[len(dtypes) :]:
        p.data = p.data.to(expected)
    assert Denoiser(network, make_scheduler()).dtype == expected


def test_a_measured_parameter_in_eight_bits_is_refused() -> None:
    model = Adapted()
    model.up.weight.data = model.up.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(CoverageError, match=r"16 bits or more to be measured, got torch\.float8_e4m3fn in up\.weight"):
        GradientEngine(model)


def test_weights_that_are_nowhere_are_refused() -> None:
    network = SmallDenoiser()
    network.inward.to("meta")
    with pytest.raises(ValueError, match=r"got inward\.weight on the meta device, as sequential offload leaves it"):
        Denoiser(network, make_scheduler())


def test_tensors_that_wrap_others_have_the_fingerprint_of_what_they_wrap() -> None:
    a, b = randn(3, 4), randn(3, 4, seed=1)
    wrapped = fingerprint_tensors({"w": TwoTensor(a, b)})
    assert wrapped == fingerprint_tensors({"w": TwoTensor(a.clone(), b.clone())})
    others = [TwoTensor(a, a), TwoTensor(b, b), TwoTensor(b, a), a]
    assert wrapped not in [fingerprint_tensors({"w": other}) for other in others]
    assert wrapped != fingerprint_tensors({"v": TwoTensor(a, b)})


def test_a_base_that_wraps_its_numbers_is_measured(tmp_path: Path) -> None:
    base = nn.Linear(64, 64).requires_grad_(False)
    doubled = nn.Linear(64, 64).requires_grad_(False)
    doubled.weight = nn.Parameter(TwoTensor(base.weight.data, base.weight.data.clone()), requires_grad=False)
    doubled.bias = base.bias

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = doubled

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight.a, self.layer.bias)

    model, plain = Adapted(First()), Adapted(base)
    assert torch.equal(exact(model), exact(plain))
    run = {"projector": CountSketch(64), "progress": False}
    features = journey.featurize((model, make_scheduler()), Images(make_images(3)), tmp_path, **run)
    features.check_model()
    assert kept_bytes(model, lambda: values_of(model)(slice(0, 3))) > 0


@pytest.mark.parametrize("library", ["torchao", "optimum.quanto", "bitsandbytes"])
def test_a_base_that_a_library_quantised_is_measured(tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library)
    base = nn.Sequential(nn.Linear(64, 64))
    if library == "torchao":
        module.quantization.quantize_(base, module.quantization.Int8WeightOnlyConfig())
    elif library == "optimum.quanto":
        module.quantize(base, weights=module.qint8)
        module.freeze(base)
    else:
        weight, bias = base[0].weight.data, base[0].bias
        base[0] = module.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4")
        base[0].weight = module.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        base[0].bias = bias
        base.to("cpu")
    model = Adapted(base.requires_grad_(False))
    expected = []
    for row in range(3):
        value = values_of(model)(slice(row, row + 1)).sum()
        grads = torch.autograd.grad(value, [model.down.weight, model.up.weight])
        expected.append(torch.cat([grad.flatten() for grad in grads]))
    torch.testing.assert_close(exact(model), torch.stack(expected), rtol=1e-5, atol=1e-7)
    features = journey.featurize((model, make_scheduler()), Images(make_images(3)), tmp_path, progress=False)
    features.check_model()


class InferenceOnly(nn.Module):
    """A layer that passes no gradient on, as those whose inputs are quantised too; or as bitsandbytes' on some CPUs."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.detach(), self.weight)


class Ended(Adapted):
    """An adapter with such a layer behind it, around which some of the gradient passes, or none."""

    def __init__(self, *, around: bool) -> None:
        super().__init__(nn.Linear(64, 64).requires_grad_(False))
        self.last, self.around = InferenceOnly(nn.Linear(64, 64)), around
        self.eval()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        h = super().forward(x, times).flatten(1)
        return (self.last(h) + h if self.around else self.last(h)).view_as(x)


@pytest.mark.parametrize("around", [True, False])
def test_a_layer_that_passes_no_gradient_on_is_named(around: bool) -> None:
    engine = GradientEngine(Ended(around=around))
    values, features = values_of(engine.model), torch.zeros(3, engine.num_parameters)
    engine.add_gradients_(features, values, num_rows=3, projector=Identity())
    with pytest.raises(GradientCheckError, match=r"layer 'last', a InferenceOnly, passes no gradient on"):
        check_gradients(engine, features, values, num_rows=3, projector=Identity())


def test_values_that_no_measured_parameter_reaches_do_not_pass_the_check() -> None:
    engine = GradientEngine(Adapted())
    features = torch.zeros(3, engine.num_parameters)
    with pytest.raises(CoverageError, match="no measured parameter reaches what is measured"):
        check_gradients(engine, features, lambda rows: torch.ones(3)[rows], num_rows=3, projector=Identity())


def test_a_measured_parameter_that_wraps_others_is_refused() -> None:
    model = Adapted()
    weight = model.up.weight.data
    model.up.weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    with pytest.raises(CoverageError, match=r"plain tensors to be measured, got .* in up\.weight: a quantised base"):
        GradientEngine(model)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_a_float_adapter_over_a_base_that_is_cast_is_measured(stored: torch.dtype) -> None:
    def adapted(network: Any) -> Any:
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]), network)
        for name, p in network.named_parameters():
            if ".lora_" in name:  # which peft makes in the dtype that the base is stored in
                p.data = randn(*p.shape, seed=len(name))
        return network.eval()

    network, plain = (adapted(each) for each in cast(make_unet(), stored))
    found = exact(network)
    assert found.any(1).all()
    assert torch.equal(found, exact(plain))


def test_weights_that_bitsandbytes_would_pack_stay_as_they_are() -> None:
    network = SmallDenoiser()
    network.time.support_avx512bf16_for_cpu = True
    Denoiser(network, make_scheduler())
    assert network.time.support_avx512bf16_for_cpu is False
    network.time.support_avx512bf16_for_cpu = True
    network.time.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ValueError, match="bitsandbytes packed the weights of time for inference"):
        Denoiser(network, make_scheduler())


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offloading_is_measured_where_weights_stay_and_refused_where_they_go(kind: str, tmp_path: Path) -> None:
    cpu, plain = torch.device("cpu"), make_unet()
    options = {"onload_device": cpu, "offload_device": cpu, "offload_type": kind, "num_blocks_per_group": 1}
    network = make_unet()
    network.enable_group_offload(**options)
    Denoiser(network, make_scheduler())
    assert torch.equal(exact(network), exact(plain))
    network = make_unet()
    network.enable_group_offload(**options, offload_to_disk_path=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"got group offloading of .* to the disk, which leaves nothing in their place"
    ):
        Denoiser(network, make_scheduler())
    network = make_unet()
    network.enable_group_offload(**options)
    for module in network.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None and registry.get_hook("group_offloading") is not None:
            registry.get_hook("group_offloading").group.onload_device = torch.device("cuda")
    with pytest.raises(ValueError, match=r"must keep its weights where its layers compute, .* offloaded to cpu"):
        Denoiser(network, make_scheduler())


def test_a_network_on_several_devices_is_refused() -> None:
    network = SmallDenoiser()
    check_placed(network)
    network.inward.to("meta")  # the only other device here
    with pytest.raises(ValueError, match="must have all its weights on one device, got cpu, meta, as a device_map"):
        check_placed(network)
    network = SmallDenoiser()
    network._hf_hook = SimpleNamespace(execution_device=0)  # as enable_model_cpu_offload() leaves it
    with pytest.raises(
        ValueError, match=r"got all of it offloaded to cpu; load it without .* enable_model_cpu_offload"
    ):
        check_placed(network)


def test_a_layer_inside_of_vmap_is_refused() -> None:
    layer = nn.Linear(8, 8)
    with pytest.raises(CoverageError, match=r"called with the whole batch, got one inside torch\.vmap"):
        kept_bytes(layer, lambda: torch.vmap(layer)(torch.ones(2, 3, 8)))

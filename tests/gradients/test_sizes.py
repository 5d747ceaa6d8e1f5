"""The size of each layer's gradient is autograd's, faults are found where they begin, and inspecting tells of both."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import IMAGE, Images, SmallDenoiser, make_images, make_scheduler, make_unet, one_at_a_time, split
from torch import Tensor, nn

import journey
from journey.errors import CorruptShardError, NonFiniteGradientError
from journey.features.layer_sizes import read_sizes, sampled_ids, write_sizes
from journey.gradients.engine import GradientEngine
from journey.gradients.sizes import LayerSizes, find_fault, gauge_layers
from journey.measure.draws import ExplicitDraws, StratifiedDraws
from journey.projectors.random import CountSketch
from journey.store.part import ShardName
from journey.store.store import FeatureStore

module = importlib.import_module("journey.features.fill")

FIRST = ShardName("000000", 0)


def run(out: Path, network: nn.Module | None = None, num_samples: int = 9, **options: Any) -> journey.Features:
    options = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "shard_size": 4, **options}
    model = (SmallDenoiser() if network is None else network, make_scheduler())
    return journey.featurize(model, Images(make_images(num_samples)), out, progress=False, **options)


@pytest.mark.parametrize("kind", ["unet", "gated", "repeated"])
def test_norms_and_largest_entries_of_layers_are_those_of_autograds_gradients(kind: str) -> None:
    network = {"unet": make_unet, "gated": Gated, "repeated": Repeated}[kind]()
    images, times = make_images(6), torch.tensor([3, 90, 50, 7, 20, 66])

    def values(rows: slice) -> Tensor:
        output = network(images[rows], times[rows])
        prediction = output if isinstance(output, Tensor) else output.sample
        return prediction.pow(3).flatten(1).mean(1)

    engine = GradientEngine(network, uncovered="autograd" if kind == "gated" else "error")
    sizes = gauge_layers(engine, values, num_rows=6, num_groups=3)
    expected: dict[str, list[Tensor]] = {}
    for name, grads in split(network, one_at_a_time(network, values, 3, 2)):
        expected.setdefault(name.rpartition(".")[0] or name, []).append(grads)
    assert sizes.layers == list(expected)
    for column, grads in enumerate(expected.values()):
        whole = torch.cat(grads, 1)
        # As for per-sample gradients: the same float32 products in another order.
        torch.testing.assert_close(sizes.norms[:, column], whole.norm(dim=1), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(sizes.largest[:, column], whole.abs().amax(1), rtol=1e-4, atol=1e-7)


class Gated(SmallDenoiser):
    """Has a parameter without a rule and a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([2.0]))
        self.unused = nn.Linear(3, 3)

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.gain * super().forward(x_t, timesteps)


class Repeated(SmallDenoiser):
    """Calls a convolution and a norm twice, with gradients that cancel in part, and has a weight of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(2, 8)
        self.other.weight = self.time.weight

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        angle = self.other(torch.stack([timesteps / 100, timesteps / 50], 1).to(x_t))
        once = super().forward(x_t, timesteps) + angle.mean(1)[:, None, None, None]
        return once - super().forward(0.8 * x_t, timesteps)


class Faulty(SmallDenoiser):
    """Computes something that is not finite: nowhere, between two layers, or only on the way back."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.last = nn.Conv2d(1, 1, 1).eval()

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        x = super().forward(x_t, timesteps)
        if self.where == "between":
            x = x / (timesteps != 50)[:, None, None, None]
        if self.where == "backward":
            zero = 0 * x * (timesteps == 50)[:, None, None, None] + (timesteps != 50)[:, None, None, None]
            x = x + zero.sqrt()
        return self.last(x)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("nowhere", None),
        ("between", (2, "last", "input")),
        # The last layer's own gradient is finite: what it is given and what it is told both are.
        ("backward", (2, "outward", "gradient")),
        ("weight", (0, "norm", "output")),
    ],
)
def test_a_fault_is_found_in_the_row_and_the_layer_in_which_it_begins(
    where: str, expected: tuple[int, str, str] | None
) -> None:
    network, images, times = Faulty(where), make_images(4), torch.tensor([3, 20, 50, 50])
    if where == "weight":
        network.norm.weight.data[2] = float("inf")

    def values(rows: slice) -> Tensor:
        return network(images[rows], times[rows]).square().flatten(1).mean(1)

    assert find_fault(GradientEngine(network), values, range(4)) == expected


def test_the_error_names_image_timestep_and_layer(tmp_path: Path) -> None:
    timesteps = torch.arange(18).view(9, 2)
    noise = torch.ones(9, 2, *IMAGE)
    noise[5, 1, 0, 3, 3] = float("nan")
    told = (
        r"for sample 5; nothing of them was kept\. It begins in sample 5 at timestep 11: the input of layer 'inward'\."
    )
    with pytest.raises(NonFiniteGradientError, match=told):
        run(tmp_path / "f", draws=ExplicitDraws(timesteps, noise))


@pytest.mark.parametrize("strings", [True, False])
def test_about_one_image_in_256_is_sampled_by_its_id(strings: bool) -> None:
    ids: list[int | str] = [f"{i}.png" if strings else i for i in range(51_200)]
    found = sampled_ids(ids)
    assert abs(len(found) - 200) < 5 * 200**0.5
    dealt = {i for begin in range(0, 51_200, 100) for i in sampled_ids(ids[begin : begin + 100])}
    assert dealt == found, "which images are sampled depends on how they are dealt out"


def test_the_sampled_images_sizes_are_stored_and_features_are_the_same_bytes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "sampled_ids", lambda *_: {1, 2, 8})
    options: dict[str, Any] = {"draws": StratifiedDraws(num_draws=2, bins=2), "batch_size": 3}
    features = run(tmp_path / "with", **options)
    found = read_sizes(features.store, "0")
    assert found is not None
    ids, sizes = found
    assert ids == [1, 2, 8]
    assert sizes.layers == ["inward", "time", "norm", "outward"]
    exact = run(tmp_path / "exact", projector=journey.Identity(), row="float32", **options).store.features("0")[ids]
    pieces: dict[str, list[Tensor]] = {}
    for name, grads in split(features.featurizer.denoiser.network, exact.flatten(0, 1)):
        pieces.setdefault(name.rpartition(".")[0], []).append(grads)
    norms = torch.stack([torch.cat(grads, 1).norm(dim=1) for grads in pieces.values()], 1)
    torch.testing.assert_close(sizes.norms.flatten(0, 1), norms, rtol=1e-4, atol=0)

    monkeypatch.setattr(module, "sampled_ids", lambda *_: set())
    without = run(tmp_path / "without", **options)
    assert read_sizes(without.store, "0") is None
    assert not list((tmp_path / "without").glob("layers-*"))
    for path in (tmp_path / "without").glob("*.*"):
        assert path.read_bytes() == (tmp_path / "with" / path.name).read_bytes()
    health = journey.inspect(without)
    assert health.checkpoints[0].layers is None
    assert "layers" not in str(health)


def test_damaged_or_foreign_sizes_are_refused(tmp_path: Path) -> None:
    store, other = run(tmp_path / "f").store, run(tmp_path / "g", draws=StratifiedDraws(num_draws=4)).store
    (path,) = store.path.glob("layers-*")
    mine, foreign = path.read_bytes(), (other.path / path.name).read_bytes()
    assert read_sizes(store, "0") is not None
    for broken in (mine[:-1] + bytes([mine[-1] ^ 1]), mine[:-3], foreign):
        path.write_bytes(broken)
        with pytest.raises(CorruptShardError, match=r"layers-000-000000-000000\.safetensors is damaged"):
            read_sizes(store, "0")


def with_sizes(folder: Path, norms: Tensor, largest: Tensor) -> FeatureStore:
    """A store with sizes of the caller's, one image after the other. Each [num_images, bins, num_layers]"""
    store = run(folder, draws=StratifiedDraws(num_draws=2, bins=norms.shape[1])).store
    names = [f"layer{i}" for i in range(norms.shape[2])]
    rows = {i: LayerSizes(names, *row) for i, row in enumerate(zip(norms, largest, strict=True))}
    for path in store.path.glob("layers-*"):
        path.unlink()
    write_sizes(store, "0", FIRST, rows)
    return store


def test_inspecting_counts_each_fault_of_each_layer_and_bin(tmp_path: Path) -> None:
    norms = torch.rand(3, 2, 5) + 1
    largest = norms / 2
    largest[:, 1, 0] = norms[:, 1, 0] = float("nan")
    largest[1, 0, 1], norms[1, 0, 1] = float("inf"), float("inf")
    largest[:, :, 2] = norms[:, :, 2] = 0
    largest[2, 1, 3] = 1e-40
    health = journey.inspect(with_sizes(tmp_path / "f", norms, largest).path)
    layers = health.checkpoints[0].layers
    assert layers is not None
    counts = [(x.nan_rows, x.inf_rows, x.zero_rows, x.subnormal_rows) for x in layers.layers]
    none = [0, 0]
    assert counts == [
        ([0, 3], none, none, none),
        (none, [1, 0], none, none),
        (none, none, [3, 3], none),
        (none, none, none, [0, 1]),
        (none, none, none, none),
    ]
    squares = (norms / 2).square().nan_to_num(nan=0, posinf=0).sum((0, 1))
    assert [x.share for x in layers.layers] == pytest.approx((squares / squares.sum()).tolist(), rel=1e-5)
    assert layers.layers[4].norms == pytest.approx(norms[:, :, 4].median(0).values.tolist())
    text = str(health)
    for told in (
        "layer layer0: the gradient is NaN for 3 of 6 rows",
        "layer layer1: the gradient is infinite for 1 of 6 rows",
        "layers layer2: the gradient is zero for every image",
        "layer layer3: the gradient is too small for float32 for 1 of 6 rows",
    ):
        assert f"warning: checkpoint 0, {told}" in text
    written = json.loads(health.to_json(), parse_constant=pytest.fail)["checkpoints"][0]["layers"]["layers"]
    assert written[2]["zero_rows"] == [3, 3]
    assert written[0]["norms"] == [pytest.approx(norms[:, 0, 0].median().item()), None]


def test_a_layer_that_drowns_the_others_is_named(tmp_path: Path) -> None:
    norms = torch.ones(2, 1, 30)
    norms[..., 7] = 30
    health = journey.inspect(with_sizes(tmp_path / "f", norms, norms).path)
    told = "layer layer7: makes up 97% of the squared gradient"
    assert [text for text in health.warnings if told in text]
    assert "and 18 more with 1.9% together" in str(health)


def test_an_unused_layer_of_a_real_network_is_told_of(tmp_path: Path) -> None:
    features = run(tmp_path / "f", Gated(), uncovered="autograd")
    health = journey.inspect(features)
    assert [text for text in health.warnings if "layers unused: the gradient is zero for every image" in text]

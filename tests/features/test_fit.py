"""A fit is what its formulas say, is made once, goes on where it was stopped, and belongs to one model."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import IMAGE, Images, SmallDenoiser, make_images, make_scheduler
from torch import Tensor, nn

import journey
from journey.curvature.gram import GramMatrix, mix
from journey.errors import CorruptShardError, NonFiniteGradientError, StoreMismatchError
from journey.features import fit as module
from journey.features.fitted import Fit
from journey.features.gram_rows import OWN_DRAWS
from journey.files.lock import locked
from journey.measure.draws import StratifiedDraws
from journey.measure.left_out import Prior
from journey.ops.keys import derive_key, to_signed
from journey.ops.noise import keyed_noise
from journey.projectors.exact import Identity
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

NUM_IMAGES = 6
SCHEDULER = make_scheduler()
CPU = torch.device("cpu")


def fit(out: Path, network: nn.Module | None = None, count: int = NUM_IMAGES, **options: Any) -> journey.Fit:
    """A fit of six images, quietly."""
    model = (SmallDenoiser() if network is None else network, SCHEDULER)
    return journey.fit(model, Images(make_images(count)), out, **{"progress": False, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pseudo_gradient(network: nn.Module, image: Tensor, t: Tensor, noise: Tensor, u: Tensor) -> Tensor:
    """``sqrt(2 / D) <u, prediction>`` by autograd. [grad_dim]."""
    value = (2 / image.numel()) ** 0.5 * (u * network(SCHEDULER.add_noise(image[None], noise[None], t), t)[0]).sum()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(value, list(network.parameters()))])


def explicit_pseudo(network: nn.Module, each: int) -> Tensor:
    """All pseudo-gradients of six images. [6 * each, grad_dim]."""
    images, draws, ids = make_images(NUM_IMAGES), StratifiedDraws(each, antithetic=False), range(NUM_IMAGES)
    times, noise = draws.timesteps(ids, 100), draws.noise(ids, IMAGE, CPU)
    keys = torch.tensor([to_signed(derive_key(0, "pseudo-gradient", i)) for i in ids])
    directions = keyed_noise(keys, each, IMAGE, CPU, antithetic=False, per=each)
    return torch.stack(
        [
            pseudo_gradient(network, images[i], times[i, 0, d : d + 1], noise[i, 0, d], directions[i, 0, d])
            for i in ids
            for d in range(each)
        ]
    )


def explicit_own(network: nn.Module) -> Tensor:
    """Gradients of the training loss of every image and stratum. [6, 10, grad_dim]."""
    images, ids = make_images(NUM_IMAGES), range(NUM_IMAGES)
    times, noise = OWN_DRAWS.timesteps(ids, 100), OWN_DRAWS.noise(ids, IMAGE, CPU)
    rows = []
    for i in ids:
        for b in range(OWN_DRAWS.bins):
            x_t = SCHEDULER.add_noise(images[i].expand(2, *IMAGE), noise[i, b], times[i, b])
            loss = (network(x_t, times[i, b]) - noise[i, b]).square().mean()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]))
    return torch.stack(rows).view(NUM_IMAGES, OWN_DRAWS.bins, -1)


def normalised(rows: Tensor) -> Tensor:
    """Second moment over its mean diagonal, float64."""
    moment = rows.double().T @ rows.double()
    return moment / moment.diagonal().mean()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_gram_matrix_is_the_mix_of_explicit_gradients(tmp_path: Path, share: float) -> None:
    options = {"measurement": journey.TrainingLoss(), "projector": Identity()}
    gram = fit(tmp_path, pseudo_gradients=24, own_share=share, **options).gram()
    own = explicit_own(SmallDenoiser())
    expected = share * normalised(own.flatten(0, 1)) + (1 - share) * normalised(explicit_pseudo(SmallDenoiser(), 4))
    assert (gram.matrix - expected).norm() < 1e-5 * expected.norm()
    assert gram.parts[:, :2].tolist() == [[60, share], [24, 1 - share]]
    noise = (own[:, 0::2].mean(1) - own[:, 1::2].mean(1)) / 2
    torch.testing.assert_close(gram.noise, noise, rtol=1e-4, atol=1e-6)


def test_scales_give_every_parameter_the_mean_square_of_one(tmp_path: Path) -> None:
    found = fit(tmp_path, projector=Scaled(CountSketch(64))).scales
    network = SmallDenoiser()
    rows, begin = explicit_pseudo(network, -(-module.SCALE_ROWS // NUM_IMAGES)), 0
    floor = 1e-4 * rows.square().mean().item()
    assert found.keys() == {name for name, _ in network.named_parameters()}
    for name, p in network.named_parameters():
        mean = rows[:, begin : begin + p.numel()].square().mean().item()
        assert found[name] == pytest.approx((mean + floor) ** -0.5, rel=1e-4)
        begin += p.numel()


def test_the_prior_is_that_of_the_images_that_are_looked_at(tmp_path: Path) -> None:
    expected = Prior.of(make_images(NUM_IMAGES))
    found = fit(tmp_path).prior
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.variance, expected.variance)


@pytest.mark.parametrize("count", [40, 4])
def test_solving_is_the_inverse_of_the_damped_matrix(count: int) -> None:
    rows = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    gram = mix(lambda: iter([rows]), lambda: iter(torch.eye(8)[:3, None]), 0.5, torch.zeros(1, 8), CPU)
    assert gram.is_whole is (count == 40)
    expected = (normalised(rows) + normalised(torch.eye(8)[:3])) / 2
    torch.testing.assert_close(gram.matrix.double(), expected, rtol=1e-5, atol=1e-6)
    assert gram.matrix.diagonal().mean().item() == pytest.approx(1)
    torch.testing.assert_close(gram.eigenvalues(), torch.linalg.eigvalsh(expected), rtol=1e-5, atol=1e-5)
    for damping in (0.1, 2.0):
        expected = torch.linalg.inv(gram.matrix.double() + damping * torch.eye(8))
        torch.testing.assert_close(gram.solve(torch.eye(8), damping), expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_solved_says_so() -> None:
    gram = GramMatrix(torch.diag(torch.tensor([2.0, 0.0])), torch.zeros(1, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"damping must be large enough .* got 0"):
        gram.solve(torch.ones(1, 2), 0)


def test_gradients_that_are_all_zero_are_refused(tmp_path: Path) -> None:
    network = SmallDenoiser()
    nn.init.zeros_(network.outward.weight)
    for parameter in (network.inward, network.time, network.norm):
        parameter.requires_grad_(False)
    network.outward.bias.requires_grad_(False)
    nn.init.zeros_(network.norm.weight)
    nn.init.zeros_(network.norm.bias)
    with pytest.raises(ValueError, match="all gradients are zero: there is nothing to score with"):
        fit(tmp_path, network)


def test_the_same_call_makes_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(module, "make_gram", None)
    monkeypatch.setattr(module, "fit_scales", None)
    fit(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert sorted(before) == [".lock", "fit.json", "gram-000.safetensors", "measure.safetensors"]


def test_a_fit_that_was_stopped_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("journey.features.gram_rows._ROWS_PER_PART", 20)
    fit(tmp_path / "whole", pseudo_gradients=60)
    measured = []

    def stop(*_: Any, **__: Any) -> None:
        measured.append(1)
        if len(measured) > 4:
            raise KeyboardInterrupt

    sketch = journey.Featurizer.sketch_rows
    monkeypatch.setattr(journey.Featurizer, "sketch_rows", lambda *a, **k: (stop(), sketch(*a, **k))[1])
    monkeypatch.setattr("journey.features.gram_rows._ROWS_PER_BATCH", 10)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", pseudo_gradients=60)
    left = list((tmp_path / "stopped").glob("parts-*/*"))
    assert {path.name.split("-")[0] for path in left} == {"own", "pseudo"}
    monkeypatch.setattr("journey.features.gram_rows._ROWS_PER_BATCH", 64)
    monkeypatch.setattr(journey.Featurizer, "sketch_rows", sketch)
    fit(tmp_path / "stopped", pseudo_gradients=60)
    first, second = (Fit.load(tmp_path / name).gram() for name in ("whole", "stopped"))
    torch.testing.assert_close(first.matrix, second.matrix, rtol=1e-4, atol=1e-5)  # other rows per pass
    assert not list((tmp_path / "stopped").glob("parts-*"))


def test_another_gram_matrix_is_made_only_when_it_is_asked_for(tmp_path: Path) -> None:
    fit(tmp_path, pseudo_gradients=24)
    before = contents(tmp_path)
    assert fit(tmp_path).gram().parts[1, 0] == 24
    assert contents(tmp_path) == before
    fit(tmp_path, pseudo_gradients=36)
    after = contents(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"gram-000.safetensors"}
    assert fit(tmp_path, own_share=0.25).gram().parts[0, 1] == 0.25


def test_rows_do_not_depend_on_the_gram_matrix(tmp_path: Path) -> None:
    model, dataset = (SmallDenoiser(), SCHEDULER), Images(make_images(NUM_IMAGES))
    stores = []
    for name, count in (("few", 12), ("many", 48)):
        fitted = fit(tmp_path / name, pseudo_gradients=count)
        features = journey.featurize(model, dataset, tmp_path / f"store {name}", fit=fitted.path, progress=False)
        stores.append(contents(features.store.path))
    assert stores[0] == stores[1]


def test_a_fit_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    fit(tmp_path / "fit")
    with pytest.raises(StoreMismatchError, match=r"fit in .* is of another run: weights\[0\]: .* in the fit, .* now"):
        fit(tmp_path / "fit", SmallDenoiser(1))
    with pytest.raises(StoreMismatchError, match=r"projector\.inner\.proj_dim: 4096 in the fit, 64 now"):
        journey.featurize(
            (SmallDenoiser(), SCHEDULER),
            Images(make_images(3)),
            tmp_path / "f",
            fit=tmp_path / "fit",
            projector=Scaled(CountSketch(64)),
            progress=False,
        )


def test_a_store_is_refused_for_another_measure_stage(tmp_path: Path) -> None:
    model, dataset = (SmallDenoiser(), SCHEDULER), Images(make_images(NUM_IMAGES))
    fits = [fit(tmp_path / str(count), count=count) for count in (NUM_IMAGES, 4)]
    journey.featurize(model, dataset, tmp_path / "f", fit=fits[0], progress=False)
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.fit: .* in the store, .* now"):
        journey.featurize(model, dataset, tmp_path / "f", fit=fits[1], progress=False)
    with pytest.raises(FileNotFoundError, match=r"fit must be given: .* was made with one that lies elsewhere"):
        journey.open_features(tmp_path / "f", model)
    opened = journey.open_features(tmp_path / "f", model, fit=fits[0].path)
    assert opened.fit.fingerprint == fits[0].fingerprint


@pytest.mark.parametrize("name", ["fit.json", "measure.safetensors", "gram-000.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    fit(tmp_path, projector=Scaled(CountSketch(64)))
    data = bytearray((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(data[:-40])
    with pytest.raises(CorruptShardError, match=f"{name} is damaged: .* Delete this file and run journey.fit again"):
        fit(tmp_path, projector=Scaled(CountSketch(64)))


def test_whoever_comes_second_waits_and_takes_what_the_first_made(tmp_path: Path) -> None:
    tmp_path.joinpath("fit").mkdir()
    found: list[journey.Fit] = []
    with locked(tmp_path / "fit"):
        waiting = threading.Thread(target=lambda: found.append(fit(tmp_path / "fit")))
        waiting.start()
        time.sleep(0.5)
        assert not (tmp_path / "fit" / "fit.json").exists()
    waiting.join()
    assert found[0].scales


def test_features_too_long_for_a_gram_matrix_are_measured_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dataset = (SmallDenoiser(), SCHEDULER), Images(make_images(2))
    monkeypatch.setattr(module, "LARGEST_GRAM", 100)
    projector = CountSketch(64)
    features = journey.featurize(model, dataset, tmp_path, projector=projector, progress=False)
    with pytest.raises(FileNotFoundError, match="this fit has no Gram matrix to score with"):
        journey.score(features, images=dataset, progress=False)


def test_weights_that_are_not_finite_are_named_with_the_image(tmp_path: Path) -> None:
    network = SmallDenoiser()
    network.outward.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteGradientError, match="gradients are NaN or infinite for sample 0"):
        fit(tmp_path, network)
    assert not (tmp_path / "fit.json").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pseudo_gradients": 0}, ValueError, "pseudo_gradients must be a positive integer, got 0"),
        ({"own_share": 1.5}, ValueError, r"own_share must be between 0 and 1, got 1\.5"),
        ({"measurement": journey.TrainingLoss}, TypeError, "measurement must be an object"),
        ({"count": 0}, ValueError, "dataset must"),
    ],
)
def test_an_argument_out_of_range_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit(tmp_path, **options)


def test_what_is_no_fit_is_refused(tmp_path: Path) -> None:
    model, dataset = (SmallDenoiser(), SCHEDULER), Images(make_images(2))
    with pytest.raises(TypeError, match=r"fit must be what journey.fit returned, or its folder, got int"):
        journey.featurize(model, dataset, tmp_path / "f", fit=3, progress=False)
    with pytest.raises(FileNotFoundError, match=r"is no fit: it has no fit\.json"):
        journey.featurize(model, dataset, tmp_path / "f", fit=tmp_path, progress=False)


@given(st.integers(1, 100_000))
def test_the_images_that_are_looked_at_are_distinct_and_evenly_spread(num_samples: int) -> None:
    ids = module.sampled_ids(num_samples)
    assert ids == sorted(set(ids))
    assert len(ids) == min(num_samples, 512)
    assert ids[0] == 0
    assert ids[-1] >= num_samples - -(-num_samples // 512)


def test_the_gram_matrix_of_another_fit_is_refused(tmp_path: Path) -> None:
    one, other = fit(tmp_path / "a"), fit(tmp_path / "b", count=NUM_IMAGES - 2)
    (one.path / "gram-000.safetensors").write_bytes((other.path / "gram-000.safetensors").read_bytes())
    with pytest.raises(CorruptShardError, match=r"gram-000\.safetensors is the Gram matrix of another fit"):
        Fit.load(tmp_path / "a").gram()

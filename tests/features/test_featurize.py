"""Features are the mean gradients that an independent loop computes, whatever the batch, the order or the process."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import as_matrix, randn
from diffusers import DDPMScheduler
from models import IMAGE, Images, SmallDenoiser, make_images, make_scheduler, make_unet
from PIL import Image
from torch import Tensor, nn

import journey
from journey import CountSketch, Featurizer, Identity, StratifiedDraws, TrainingLoss
from journey.errors import CoverageError, GradientCheckError, NonFiniteGradientError, StoreMismatchError
from journey.features import contents as contents_module
from journey.measure.draws import ExplicitDraws, GridDraws, UniformDraws
from journey.measure.measurements import Measurement, Prediction, SquaredNorm
from journey.models.denoiser import Denoiser
from journey.models.schedules import PREDICTION_TYPES
from journey.projectors.random import Rademacher
from journey.store.store import FeatureStore

NUM_SAMPLES = 9


def run(out: Path, model: Any = None, dataset: Any = None, **options: Any) -> journey.Features:
    """Featurize nine images quietly with a small sketch, unless told otherwise."""
    defaults = {"projector": CountSketch(64), "draws": StratifiedDraws(num_draws=2), "progress": False, "shard_size": 4}
    defaults |= {"measurement": TrainingLoss(), "row": "float32"}
    model = (SmallDenoiser(), make_scheduler()) if model is None else model
    dataset = Images(make_images(NUM_SAMPLES)) if dataset is None else dataset
    return journey.featurize(model, dataset, out, **{**defaults, **options})


def make_explicit(num_samples: int = NUM_SAMPLES, num_draws: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Different timesteps and noise. [num_samples, num_draws], [num_samples, num_draws, *IMAGE]."""
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(0, 100, (num_samples, num_draws), generator=generator)
    return timesteps, randn(num_samples, num_draws, *IMAGE, seed=seed + 1)


def independent_gradients(
    network: nn.Module,
    scheduler: DDPMScheduler,
    images: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = torch.nn.functional.mse_loss,
) -> Tensor:
    """Mean gradients by autograd and diffusers alone, one draw after the other. [num_samples, grad_dim]."""
    rows = []
    for image, times, noises in zip(images, timesteps, noise, strict=True):
        network.zero_grad()
        for t, e in zip(times, noises, strict=True):
            x_t = scheduler.add_noise(image[None], e[None], t[None])
            output = network(x_t, t[None])
            prediction = output if isinstance(output, Tensor) else output.sample
            target = {
                "epsilon": lambda e=e: e[None],
                "sample": lambda image=image: image[None],
                "v_prediction": lambda image=image, e=e, t=t: scheduler.get_velocity(image[None], e[None], t[None]),
            }[scheduler.config.prediction_type]()
            (loss(prediction, target) / len(times)).backward()
        rows.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    network.zero_grad()
    return torch.stack(rows)


def assert_same_rows(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Every row differs by at most this fraction of its norm."""
    assert actual.shape == expected.shape
    error = (actual - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() <= tolerance, f"row {int(error.argmax())} is off by {error.max():.1e} of its norm"


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_features_are_the_gradients_of_an_independent_loop(tmp_path: Path, prediction_type: str) -> None:
    network, scheduler, images = SmallDenoiser(), make_scheduler(prediction_type), make_images(NUM_SAMPLES)
    timesteps, noise = make_explicit()
    draws = ExplicitDraws(timesteps, noise)
    features = run(tmp_path / "f", (network, scheduler), Images(images), projector=Identity(), draws=draws)
    expected = independent_gradients(network, scheduler, images, timesteps, noise)
    assert_same_rows(features.matrix(), expected)


def test_features_of_a_unet_are_the_gradients_of_an_independent_loop(tmp_path: Path) -> None:
    network, scheduler, images = make_unet(), make_scheduler(), make_images(2)
    timesteps, noise = make_explicit(2, 2)
    draws = ExplicitDraws(timesteps, noise)
    features = run(tmp_path / "f", (network, scheduler), Images(images), projector=Identity(), draws=draws)
    assert_same_rows(features.matrix(), independent_gradients(network, scheduler, images, timesteps, noise))


def test_the_measurement_is_what_is_differentiated(tmp_path: Path) -> None:
    network, scheduler, images = SmallDenoiser(), make_scheduler(), make_images(NUM_SAMPLES)
    timesteps, noise = make_explicit()
    options = {"projector": Identity(), "draws": ExplicitDraws(timesteps, noise), "measurement": SquaredNorm()}
    features = run(tmp_path / "f", (network, scheduler), Images(images), **options)
    expected = independent_gradients(
        network, scheduler, images, timesteps, noise, lambda prediction, _: prediction.square().mean()
    )
    assert_same_rows(features.matrix(), expected)


def test_stored_values_are_the_mean_measurements_of_each_bin(tmp_path: Path) -> None:
    network, scheduler, images = SmallDenoiser(), make_scheduler(), make_images(NUM_SAMPLES)
    draws, ids = StratifiedDraws(num_draws=2, bins=3), list(range(NUM_SAMPLES))
    found = run(tmp_path / "f", (network, scheduler), Images(images), draws=draws).store
    (*shards,) = found.iter_shards("0")
    timesteps, noise = draws.timesteps(ids, 100), draws.noise(ids, IMAGE, torch.device("cpu"))
    expected = torch.empty(NUM_SAMPLES, 3)
    for i in ids:
        for b in range(3):
            x_t = scheduler.add_noise(images[i].expand(2, *IMAGE), noise[i, b], timesteps[i, b])
            expected[i, b] = (network(x_t, timesteps[i, b]) - noise[i, b]).square().mean().item()
    torch.testing.assert_close(torch.cat([shard.values for shard in shards]), expected, rtol=1e-5, atol=0)
    assert [i for shard in shards for i in shard.ids] == ids


@pytest.mark.parametrize("projector", [CountSketch(64, nnz=2), Rademacher(48)], ids=["sketch", "rademacher"])
def test_projected_features_are_the_projection_of_the_gradients(tmp_path: Path, projector: Any) -> None:
    exact = run(tmp_path / "exact", projector=Identity())
    found = run(tmp_path / "projected", projector=projector).matrix()
    expected = torch.zeros_like(found)
    for slot in exact.featurizer.engine.slots.values():
        grads = exact.matrix()[:, slot.offset : slot.offset + slot.rows * slot.cols]
        shape = exact.featurizer.engine.parameters[slot.name].shape
        matrices = [as_matrix(grad.reshape(shape)) for grad in grads]
        projector.add_(expected, slot, torch.stack(matrices).contiguous())
    assert_same_rows(found, expected)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_features_do_not_depend_on_the_batch_size_or_the_threads(
    tmp_path: Path, threads: Callable[[int], None], batch_size: int, num_threads: int
) -> None:
    dataset = Images(make_images(20))
    expected = run(tmp_path / "expected", dataset=dataset, shard_size=20, batch_size=5).matrix()
    threads(num_threads)
    found = run(tmp_path / "found", dataset=dataset, shard_size=64, batch_size=batch_size).matrix()
    assert_same_rows(found, expected)


def test_features_do_not_depend_on_the_order_of_the_samples() -> None:
    featurizer = Featurizer(
        Denoiser(SmallDenoiser(), make_scheduler()), measurement=TrainingLoss(), projector=CountSketch(64)
    )
    images, draws = make_images(8), StratifiedDraws(num_draws=4, bins=2)

    def measure(ids: list[int]) -> tuple[Tensor, Tensor]:
        noise = draws.noise(ids, IMAGE, torch.device("cpu"))
        return featurizer.features(images[ids], draws.timesteps(ids, 100), noise)

    features, values = measure(list(range(8)))
    order = [5, 0, 7, 2]
    shuffled, shuffled_values = measure(order)
    assert_same_rows(shuffled, features[order])
    torch.testing.assert_close(shuffled_values, values[order], rtol=1e-5, atol=0)


def test_bins_are_measured_apart_and_add_up_to_the_whole_with_their_weights(tmp_path: Path) -> None:
    draws = GridDraws(num_draws=2, bins=3, antithetic=False)  # bins of 33, 33 and 34 timesteps
    features = run(tmp_path / "f", projector=Identity(), draws=draws)
    bins = features.store.features("0")
    ids = list(range(NUM_SAMPLES))
    timesteps, noise = draws.timesteps(ids, 100), draws.noise(ids, IMAGE, torch.device("cpu"))
    for b in range(3):
        expected = independent_gradients(
            SmallDenoiser(), make_scheduler(), make_images(NUM_SAMPLES), timesteps[:, b], noise[:, b]
        )
        assert_same_rows(bins[:, b], expected)
    whole = 0.33 * bins[:, 0] + 0.33 * bins[:, 1] + 0.34 * bins[:, 2]
    assert_same_rows(features.matrix(), whole)


def contents(path: Path) -> dict[str, bytes]:
    """Every file in a folder with its bytes."""
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


def test_without_locks_processes_measure_their_share_alone_and_write_the_files_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    run(tmp_path / "one", checkpoints=[SmallDenoiser(1), SmallDenoiser(2)])
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    for rank in (1, 0):
        weights = [SmallDenoiser(1), SmallDenoiser(2)]
        part = run(tmp_path / "two", checkpoints=weights, rank=rank, world_size=2)
        assert part.store.is_complete is (rank == 0)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_each_checkpoint_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    network, scheduler = SmallDenoiser(0), make_scheduler()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = [SmallDenoiser(1).state_dict(), SmallDenoiser(2)]
    features = run(tmp_path / "both", (network, scheduler), checkpoints=weights)
    for index, seed in enumerate((1, 2)):
        alone = run(tmp_path / f"{seed}", (SmallDenoiser(seed), scheduler))
        assert_same_rows(features.matrix(index), alone.matrix())
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_selected_parameters_are_the_only_ones(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", projector=Identity())
    part = run(tmp_path / "part", projector=Identity(), select=lambda name: name.startswith("time"))
    assert part.featurizer.features_dim == 24
    assert_same_rows(part.matrix(), whole.matrix()[:, 80:104])


@pytest.mark.parametrize("patterns", ["time.*", ["time.weight", "*me.bias"]])
def test_parameters_are_selected_by_patterns_as_by_a_function(tmp_path: Path, patterns: Any) -> None:
    wanted = run(tmp_path / "f", projector=Identity(), select=lambda name: name.startswith("time"))
    found = run(tmp_path / "g", projector=Identity(), select=patterns)
    assert_same_rows(found.matrix(), wanted.matrix())
    assert found.store.manifest == wanted.store.manifest


@pytest.mark.parametrize(
    ("patterns", "named"), [(["time.*", "tim"], "'tim'"), ([], "none"), ("*.Weight", r"'\*\.Weight'")]
)
def test_a_pattern_that_selects_nothing_is_refused(tmp_path: Path, patterns: Any, named: str) -> None:
    with pytest.raises(ValueError, match=f"select must be patterns of trainable parameters, got {named} that match"):
        run(tmp_path / "f", select=patterns)


def test_a_folder_of_images_is_a_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    for index, array in enumerate(pixels):
        Image.fromarray(array).save(folder / f"{index}.png")
    dataset = journey.ImageFolder(folder, size=(8, 8), channels=1)
    expected = run(tmp_path / "expected", dataset=dataset).matrix()
    for name, form in (("path", folder), ("words", str(folder))):
        assert_same_rows(run(tmp_path / name, dataset=form).matrix(), expected)


def test_progress_shows_samples_per_second_and_the_time_left(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(tmp_path / "f", progress=True)
    shown = capsys.readouterr().err
    assert "featurize" in shown
    assert "9/9" in shown
    assert "sample/s" in shown


class Zero(Measurement):
    """A value that depends on the parameters for the third row of a batch alone."""

    def __call__(self, p: Prediction) -> Tensor:
        rows = p.prediction.flatten(1).sum(1)
        return rows * (torch.arange(len(rows)) == 2)


def test_samples_without_any_gradient_are_reported(tmp_path: Path) -> None:
    draws = StratifiedDraws(num_draws=1)
    with pytest.warns(UserWarning, match="gradient of 8 samples is zero in every entry: 0, 1, 3, 4, 5, 6, 7, 8"):
        run(tmp_path / "f", measurement=Zero(), draws=draws, batch_size=9, shard_size=9)


# Faults. Each is one error, and shards that were finished before it stay.


def spoiled(index: int, image: Tensor) -> Images:
    """Nine images, one of them replaced."""
    images: Any = list(make_images(NUM_SAMPLES))
    images[index] = image
    return Images(images)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 8, 8), r"dataset\[6\] must have 1 channels, as the model takes, got \[3, 8, 8\]"),
        (torch.zeros(1, 8, 9), r"dataset\[6\] must be \(8, 8\) pixels, as the model takes, got \(8, 9\)"),
        (torch.full(IMAGE, float("nan")), r"dataset\[6\] has NaN or infinite pixels"),
    ],
    ids=["channels", "size", "NaN"],
)
@pytest.mark.parametrize("sampled", [True, False])
def test_an_image_that_does_not_fit_is_an_error_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Tensor, message: str, sampled: bool
) -> None:
    if not sampled:  # as in a dataset too large to look at each image before the work begins
        monkeypatch.setattr(contents_module, "_SAMPLED", 2)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "f", dataset=spoiled(6, image))
    shards = sorted(path.name for path in (tmp_path / "f").glob("rows-*.safetensors"))
    assert not shards
    if not sampled:
        run(tmp_path / "f")  # the image is repaired; its pixels are not among the two that identify the dataset
        assert contents(tmp_path / "f") == contents(run(tmp_path / "expected").store.path)


@pytest.mark.parametrize("dataset", [[], Images(make_images(0))])
def test_an_empty_dataset_is_refused(tmp_path: Path, dataset: Any) -> None:
    with pytest.raises(ValueError, match="dataset must hold at least one image, got an empty one"):
        run(tmp_path / "f", dataset=dataset)
    assert not (tmp_path / "f").exists()


def test_weights_that_are_not_finite_are_found_before_anything_is_stored(tmp_path: Path) -> None:
    good, bad = SmallDenoiser(1), SmallDenoiser(2)
    bad.inward.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteGradientError, match="gradients are NaN or infinite for samples 0, 1, 2"):
        run(tmp_path / "f", checkpoints=[good, bad])
    assert not list((tmp_path / "f").glob("rows-*.safetensors"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_names_its_sample(tmp_path: Path, value: float) -> None:
    timesteps, noise = make_explicit()
    noise[5, 1, 0, 3, 3] = value
    with pytest.raises(NonFiniteGradientError, match="NaN or infinite for sample 5; nothing"):
        run(tmp_path / "f", draws=ExplicitDraws(timesteps, noise))
    assert [shard.number for shard in FeatureStore.open(tmp_path / "f").missing("0")] == [1, 2]


def changed_weights() -> SmallDenoiser:
    network = SmallDenoiser()
    network.outward.bias.data += 1e-6
    return network


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": (changed_weights(), make_scheduler())}, r"weights\[0\]"),
        ({"model": (SmallDenoiser(), make_scheduler("sample"))}, "prediction_type"),
        ({"model": (SmallDenoiser(), make_scheduler(beta_end=0.1))}, "schedule"),
        ({"dataset": Images(make_images(NUM_SAMPLES, seed=8))}, "other pixels"),
        ({"draws": StratifiedDraws(num_draws=2, seed=1)}, r"draws\.seed"),
        ({"draws": UniformDraws(num_draws=2)}, r"draws\.class"),
        ({"projector": CountSketch(64, seed=1)}, r"projector\.seed"),
        ({"measurement": SquaredNorm()}, r"measurement\.class"),
        ({"select": lambda name: name != "time.bias"}, r"parameters\.count"),
        ({"batch_size": 3}, "batch_size"),
    ],
)
def test_a_folder_with_the_features_of_another_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    run(tmp_path / "f")
    before = contents(tmp_path / "f")
    with pytest.raises(StoreMismatchError, match=field):
        run(tmp_path / "f", **changes)
    assert contents(tmp_path / "f") == before


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"cannot write to this folder .* give another folder"):
        run(tmp_path / "file" / "f")
    with pytest.raises(FileExistsError, match="file is a file; the feature store needs a folder"):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_projection_that_is_not_whole_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"proj_dim must be a positive multiple of 32 \(for example 96\), got 100"):
        CountSketch(100)


def test_a_model_in_train_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model must be in eval mode, got train mode; call model\.eval\(\)"):
        run(tmp_path / "f", (SmallDenoiser().train(), make_scheduler()))


class PlusFunctional(SmallDenoiser):
    """Uses its first layer a second time, past the hooks."""

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        hidden = torch.nn.functional.conv2d(x_t, self.inward.weight, self.inward.bias, padding=1)
        return super().forward(x_t, timesteps) + hidden.mean(1, keepdim=True)


def test_a_layer_that_is_used_past_the_hooks_is_found_before_anything_is_stored(tmp_path: Path) -> None:
    model = (PlusFunctional(), make_scheduler())
    with pytest.raises(GradientCheckError, match=r"inward\.weight"):
        run(tmp_path / "f", model)
    assert not list((tmp_path / "f").glob("rows-*.safetensors"))
    run(tmp_path / "g", model, check=False)  # the caller may know better


class Gained(SmallDenoiser):
    """Has a parameter that belongs to no layer, and meets the batch in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return (self.gain * super().forward(x_t, timesteps).transpose(0, 1)).transpose(0, 1)


def test_a_parameter_without_a_rule_is_named_or_measured_by_autograd(tmp_path: Path) -> None:
    network, scheduler, images = Gained(), make_scheduler(), make_images(NUM_SAMPLES)
    with pytest.raises(CoverageError, match="no gradient rule for gain, and mul cannot be done row by row"):
        run(tmp_path / "f", (network, scheduler))
    run(tmp_path / "f", (network, scheduler), uncovered="autograd")  # goes on in the same folder
    timesteps, noise = make_explicit()
    options = {"projector": Identity(), "draws": ExplicitDraws(timesteps, noise), "uncovered": "autograd"}
    features = run(tmp_path / "g", (network, scheduler), Images(images), **options)
    assert_same_rows(features.matrix(), independent_gradients(network, scheduler, images, timesteps, noise))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, 'batch_size must be a positive integer or "auto", got 0'),
        ({"batch_size": "3"}, "batch_size must be a positive integer or \"auto\", got '3'"),
        ({"shard_size": 0}, "shard_size must be a positive integer, got 0"),
        ({"shard_size": 1.5}, r"shard_size must be a positive integer, got 1\.5"),
        ({"workers": "2"}, "workers must be an integer of at least 0, got '2'"),
        ({"workers": True}, "workers must be an integer of at least 0, got True"),
        ({"memory": 2**30}, 'memory is the limit of batch_size="auto"'),
        ({"world_size": 0}, "world_size must be a positive integer, got 0"),
        ({"rank": 0.5}, r"rank must be an integer of at least 0, got 0\.5"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size\), got rank 2 with world_size 2"),
        ({"rank": -1}, "rank must be an integer of at least 0, got -1"),
        ({"checkpoints": []}, "checkpoints must name at least one set of weights, got none"),
        ({"on_error": "ignore"}, 'on_error must be "error" or "skip", got \'ignore\''),
        ({"uncovered": "skip"}, 'uncovered must be "error" or "autograd"'),
    ],
)
def test_an_argument_out_of_range_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": 5}, r'select must be a function of names, or patterns such as "\*\.attn\*", got 5'),
        ({"checkpoints": 5}, "checkpoints must be a list of checkpoints, got a single int"),
        ({"draws": 3}, "draws must be an object such as journey.StratifiedDraws"),
    ],
)
def test_an_argument_of_another_kind_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(tmp_path / "f", **options)
    assert not (tmp_path / "f").exists()


def test_features_are_found_again_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = run(Path("f"))
    monkeypatch.chdir("/")
    assert journey.score(features, images=make_images(1), progress=False).values.isfinite().all()

"""Other programs may copy, wrap, share and surround a model; measuring is then the same, or is refused in words."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_same_but_for_rounding
from models import NUM_TRAIN_TIMESTEPS, SmallDenoiser, make_scheduler, make_unet
from score_runs import featurize, make_trajectory, score
from torch import Tensor, nn

import journey
from journey.locks import exclusively
from journey.measure.measurements import SquaredNorm
from journey.models.conditional import ConditionalDenoiser
from journey.models.denoiser import Denoiser

SECONDS = 120  # until what hangs is given up


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> journey.Features:
    return featurize(tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copied_features_give_the_scores_of_the_originals(
    features: journey.Features, copied: Callable[[journey.Features], journey.Features]
) -> None:
    expected = score(features).values
    assert expected.abs().min() > 0
    # The inverse of the Gram matrix multiplies the rounding of gradients.
    assert_same_but_for_rounding(score(copied(features)).values, expected, 1e-4)


def test_a_copied_featurizer_measures_the_copied_model(features: journey.Features) -> None:
    other = copy.deepcopy(features.featurizer)
    with torch.no_grad():
        for p in other.denoiser.network.parameters():
            p.zero_()
    images, times, noise = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 1).long(), torch.ones(1, 1, 1, 1, 8, 8)
    assert features.featurizer.features(images, times, noise)[0].norm() > 0
    before, after = (f.features(images, times, noise)[1] for f in (features.featurizer, other))
    assert after.item() == pytest.approx(1)  # a network of zeros misses the whole noise
    assert before.item() != pytest.approx(1)


def test_two_threads_that_share_a_model_get_the_scores_of_one(features: journey.Features) -> None:
    expected = score(features).values
    with ThreadPoolExecutor(2) as pool:
        found = [job.result(SECONDS) for job in [pool.submit(score, features) for _ in range(4)]]
    for scores in found:
        assert_same_but_for_rounding(scores.values, expected, 1e-4)
    assert all(p.requires_grad for p in features.featurizer.denoiser.network.parameters())


def test_a_network_is_free_for_other_threads_after_an_error_and_again_for_the_same_thread() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(KeyError), exclusively(network), exclusively(network):
        raise KeyError
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: exclusively(network).__enter__()).result(SECONDS) is None


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda network: torch.compile(network, backend="eager"),
    "DataParallel": nn.DataParallel,
    "both": lambda network: torch.compile(nn.DataParallel(network), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_network_is_the_network_inside(
    wrap: Callable[[nn.Module], nn.Module], features: journey.Features, tmp_path: Path
) -> None:
    found = featurize(tmp_path, wrap(SmallDenoiser()).eval())
    assert_same_but_for_rounding(found.matrix(), features.matrix())
    assert found.store.manifest.fingerprints == features.store.manifest.fingerprints


def test_a_network_with_compiled_layers_is_refused() -> None:
    inner, whole = SmallDenoiser(), SmallDenoiser()
    inner.inward.compile(backend="eager")
    whole.compile(backend="eager")
    for network, name in ((inner, "inward"), (whole, "all of it")):
        with pytest.raises(ValueError, match=rf"model must not be compiled, .* got {name} compiled; load it again"):
            Denoiser(network, make_scheduler())


def test_a_network_that_was_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        network = SmallDenoiser()
    with pytest.raises(
        ValueError, match=r"made or loaded outside of torch\.inference_mode\(\), which inward\.weight was"
    ):
        Denoiser(network, make_scheduler())


@pytest.mark.parametrize(
    ("around", "message"),
    [
        (torch.inference_mode(), r"cannot be measured inside torch\.inference_mode\(\); leave it"),
        (torch.autocast("cpu", torch.bfloat16), r"cannot be measured inside torch\.autocast, .*model\.to\("),
    ],
    ids=["inference_mode", "autocast"],
)
def test_a_mode_without_gradients_or_with_other_dtypes_is_refused(
    around: AbstractContextManager[object], message: str, features: journey.Features
) -> None:
    with pytest.raises(RuntimeError, match=message), around:
        score(features)


def test_no_grad_around_a_measurement_changes_nothing(features: journey.Features) -> None:
    expected = score(features).values
    with torch.no_grad():
        assert_same_but_for_rounding(score(features).values, expected, 1e-4)


class Answering(SmallDenoiser):
    """Returns what a function makes of the prediction."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x_t: Tensor, timesteps: Tensor) -> object:
        return self.answer(super().forward(x_t, timesteps))


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda y: (y,), TypeError, r"network must return a tensor or an object with \.sample, got tuple"),
        (lambda y: y.repeat(1, 2, 1, 1), ValueError, r"the shape of its input \[1, 1, 8, 8\], got \[1, 2, 8, 8\]"),
    ],
    ids=["tuple", "with a variance"],
)
def test_a_network_that_returns_something_else_is_told_what_is_expected(
    answer: Callable[[Tensor], object], error: type[Exception], message: str
) -> None:
    denoiser = Denoiser(Answering(answer), make_scheduler())
    with pytest.raises(error, match=message):
        denoiser.predict(torch.zeros(1, 1, 8, 8), torch.zeros(1).long())


def test_a_scheduler_without_a_config_is_refused() -> None:
    scheduler = SimpleNamespace(alphas_cumprod=torch.linspace(0.9, 0.1, NUM_TRAIN_TIMESTEPS))
    with pytest.raises(TypeError, match=r"scheduler must tell config\.prediction_type, .* SimpleNamespace does not"):
        Denoiser(SmallDenoiser(), scheduler)


def test_a_network_without_a_config_is_told_how_to_have_one() -> None:
    network = SmallDenoiser()
    del network.config
    with pytest.raises(TypeError, match=r"SmallDenoiser does not; network\.config = types\.SimpleNamespace\("):
        journey.record((network, make_scheduler()), progress=False)


@pytest.mark.parametrize("single", ["folder", {}, SmallDenoiser()], ids=["path", "state dict", "module"])
def test_a_single_checkpoint_is_told_to_come_in_a_list(single: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must be a list of checkpoints, got a single \w+; put it in a list"):
        featurize(tmp_path, checkpoints=single)


def test_bins_that_the_schedule_is_too_short_for_leave_no_store(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bins must be at most the 100 timesteps"):
        featurize(tmp_path / "out", draws=journey.StratifiedDraws(num_draws=2, bins=101))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 80}, TypeError, r"steps must be a list of timesteps, got int"),
        ({"num_inference_steps": 5}, ValueError, r"num_inference_steps is of completions' sampler, .* completions=0"),
    ],
)
def test_arguments_of_score_that_mean_nothing_are_refused(
    arguments: dict[str, object], error: type[Exception], message: str, features: journey.Features
) -> None:
    with pytest.raises(error, match=message):
        score(features, **arguments)


def test_paths_in_place_of_features_and_trajectories_are_told_how_to_open_them(features: journey.Features) -> None:
    with pytest.raises(TypeError, match=r"features must be Features, journey\.open_features\(.*, got str"):
        journey.score("folder", make_trajectory())  # type: ignore[arg-type]
    for verb in (journey.score, lambda f, t: journey.influence_matrix(f, t, 0)):
        with pytest.raises(TypeError, match=r"trajectory must be a Trajectory, journey\.Trajectory\.load\(.*, got str"):
            verb(features, "file")


@pytest.mark.parametrize("ids", [torch.tensor(3), np.int64(3), np.array([3])], ids=["tensor", "integer", "array"])
def test_influence_takes_an_id_of_any_kind_of_integer(ids: Any, tmp_path: Path) -> None:
    features = featurize(tmp_path, draws=journey.StratifiedDraws(2, bins=2))
    found = journey.influence_matrix(features, make_trajectory(), ids, num_draws=2, progress=False)
    assert found.train_ids == [3]
    with pytest.raises(TypeError, match=r"train_ids must be an integer or a string, got 1\.5"):
        journey.influence_matrix(features, make_trajectory(), 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"projector": journey.CountSketch},
            r"projector must be an object such as journey\.CountSketch\(4096\), got <class",
        ),
        ({"projector": "sketch"}, "projector must be an object .* got 'sketch'"),
        ({"measurement": SquaredNorm}, "measurement must be an object .* got <class"),
        ({"draws": 4}, "draws must be an object .* got 4"),
    ],
)
def test_what_is_no_choice_of_how_to_measure_is_refused(
    choice: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=message):
        featurize(tmp_path, **choice)


@pytest.mark.parametrize("labels", [2, np.int64(2), torch.tensor(2), torch.tensor([2]), [np.int64(2)]])
def test_class_labels_may_be_any_kind_of_integer(labels: Any) -> None:
    found = journey.record(make_class_model(), class_labels=labels, num_inference_steps=1, progress=False)
    assert found.prompts == ("class 2",)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_the_network_does_not_know_is_refused(label: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"class_labels must have class labels in 0\.\.2, got \[{label}\]"):
        journey.record(make_class_model(), class_labels=label, num_inference_steps=1, progress=False)
    dataset = [(torch.zeros(1, 8, 8), 0), (torch.zeros(1, 8, 8), label)]
    with pytest.raises(ValueError, match=rf"dataset\[1\] must have class labels in 0\.\.2, got \[{label}\]"):
        journey.featurize(make_class_model(), dataset, tmp_path, progress=False)


def make_class_model() -> tuple[nn.Module, Any]:
    return make_unet(num_class_embeds=3), make_scheduler()


def test_conditions_of_different_shapes_are_refused_by_name() -> None:
    denoiser = ConditionalDenoiser(make_unet(), make_scheduler())
    items = [{"image": torch.zeros(1, 8, 8), "encoder_hidden_states": torch.zeros(n, 4)} for n in (2, 2, 3)]
    with pytest.raises(
        ValueError, match=r"encoder_hidden_states of dataset\[7\] must be \[2, 4\] as that of dataset\[5\]"
    ):
        denoiser.encode(items, [5, 6, 7])


def test_images_that_become_nan_are_not_recorded() -> None:
    network = SmallDenoiser()
    torch.nn.init.constant_(network.outward.bias, float("nan"))
    with pytest.raises(RuntimeError, match="images became NaN or infinite at timestep 75; check the model's weights"):
        journey.record((network, make_scheduler()), num_inference_steps=4, progress=False)

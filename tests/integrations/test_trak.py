"""Inside a TRAKer our projectors and gradients give what traker itself gives, and its files are read as written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from torch import Tensor, nn

from journey.evaluate.ranks import spearman
from journey.integrations import trak as ours
from journey.methods.preconditioners import Gram
from journey.projectors.base import Projector
from journey.projectors.exact import ExplicitMatrix, Identity
from journey.projectors.random import CountSketch

trak = pytest.importorskip("trak")

NUM_TRAIN, NUM_TARGETS, PROJ_DIM = 30, 4, 12
IMAGES, TARGETS = randn(NUM_TRAIN, 1, 6, 6), randn(NUM_TARGETS, 1, 6, 6, seed=1)
LABELS, TARGET_LABELS = torch.arange(NUM_TRAIN) % 3, torch.arange(NUM_TARGETS) % 3


def make_classifier(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).eval()


MODEL = make_classifier()
GRAD_DIM = sum(p.numel() for p in MODEL.parameters())
MATRIX = randn(GRAD_DIM, PROJ_DIM, seed=2)


class Margin:
    """The margin of the right class: of one sample for traker's own gradients, of a batch for ours."""

    def get_output(self, model: nn.Module, weights: Any, buffers: Any, images: Tensor, labels: Tensor) -> Tensor:
        if weights is None:
            logits = model(images)
            return logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)
        logits = torch.func.functional_call(model, (weights, buffers), images[None])[0]
        return logits.gather(0, labels[None])[0] - logits.logsumexp(0)

    def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Any) -> Tensor:
        images, labels = batch
        return 1 - model(images).softmax(1).gather(1, labels[:, None]).detach()


class Given:
    """A matrix as traker's projectors are."""

    proj_dim, proj_type = PROJ_DIM, "given"

    def project(self, grads: Any, model_id: int) -> Tensor:
        return torch.cat([g.flatten(1) for g in grads.values()], 1) @ MATRIX

    def free_memory(self) -> None:
        pass


def run(save_dir: Path, num_models: int = 2, half: bool = False, batch: int = 7, **options: Any) -> Any:
    """A TRAKer that has featurized and scored."""
    model = make_classifier()
    traker = trak.TRAKer(
        model=model,
        task=Margin(),
        train_set_size=NUM_TRAIN,
        save_dir=save_dir,
        device="cpu",
        use_half_precision=half,
        logging_level=logging.ERROR,
        **options,
    )
    weights = [make_classifier(seed).state_dict() for seed in range(num_models)]
    for model_id, state in enumerate(weights):
        traker.load_checkpoint(state, model_id=model_id)
        for images, labels in zip(IMAGES.split(batch), LABELS.split(batch), strict=True):
            traker.featurize([images, labels], num_samples=len(images))
    traker.finalize_features()
    for model_id, state in enumerate(weights):
        traker.start_scoring_checkpoint("test", state, model_id, num_targets=NUM_TARGETS)
        traker.score([TARGETS, TARGET_LABELS], num_samples=NUM_TARGETS)
    traker.finalize_scores("test")
    return traker


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The save_dir of a TRAKer without anything of ours."""
    save_dir = tmp_path_factory.mktemp("traker")
    run(save_dir, projector=Given())
    return save_dir


def explicit(kind: str, matrix: Tensor) -> dict[str, Any]:
    if kind == "projector":
        return {"projector": ours.TRAKProjector(MODEL, ExplicitMatrix(matrix))}
    return ours.engine(MODEL, ExplicitMatrix(matrix))


@pytest.mark.parametrize("kind", ["projector", "engine"])
def test_features_and_scores_are_trakers_own(kind: str, theirs: Path, tmp_path: Path) -> None:
    run(tmp_path, batch=30, **explicit(kind, MATRIX))
    for model_id in (0, 1):
        found, expected = (ours.read_features(folder, model_id) for folder in (tmp_path, theirs))
        assert (found.grads - expected.grads).norm() <= 1e-5 * expected.grads.norm()
        torch.testing.assert_close(found.out_to_loss, expected.out_to_loss)  # of batches of other sizes
    scores, wanted = ours.read_scores(tmp_path, "test"), ours.read_scores(theirs, "test")
    assert spearman(scores.T, wanted.T).min() >= 0.999


@pytest.mark.parametrize("projector", [CountSketch(64), Identity()], ids=["sketch", "identity"])
def test_gradients_by_name_in_one_row_and_projected_as_they_are_made_are_projected_alike(projector: Projector) -> None:
    adapter = ours.TRAKProjector(MODEL, projector)
    computer = ours.engine(MODEL, projector)["gradient_computer"](model=MODEL, task=Margin())
    values = Margin().get_output(MODEL, None, None, IMAGES[:5], LABELS[:5])
    rows = [torch.autograd.grad(value, list(MODEL.parameters()), retain_graph=True) for value in values]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    named = {name: torch.stack([r[j] for r in rows]) for j, (name, _) in enumerate(MODEL.named_parameters())}
    found = adapter.project(flat, model_id=0)
    assert torch.equal(found, adapter.project(named, model_id=3))
    assert torch.equal(found[2:4], adapter.project(flat[2:4], model_id=0))
    torch.testing.assert_close(computer.compute_per_sample_grad([IMAGES[:5], LABELS[:5]]), found, rtol=1e-4, atol=1e-5)


def test_the_engine_follows_the_weights_that_are_loaded_and_the_names_that_are_chosen(tmp_path: Path) -> None:
    chosen = ["3.weight", "3.bias"]
    options = ours.engine(MODEL, Identity(), names=chosen)
    run(tmp_path / "one", grad_wrt=chosen, batch=15, **options)
    first, second = (ours.read_features(tmp_path / "one", model_id).grads for model_id in (0, 1))
    assert first.shape == (NUM_TRAIN, 147)
    assert not torch.allclose(first, second)
    net = make_classifier(1)
    value = Margin().get_output(net, None, None, IMAGES[:1], LABELS[:1])[0]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters())[2:])])
    torch.testing.assert_close(second[0], expected / 147**0.5, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"names must be of the model's parameters, got \['4\.weight'\]"):
        ours.engine(MODEL, Identity(), names=["4.weight"])
    with pytest.raises(ValueError, match=r"grad_wrt must be the names that engine was given, got \['0\.weight'\]"):
        options["gradient_computer"](model=MODEL, task=Margin(), grad_wrt=["0.weight"])


def test_parameters_that_are_not_trainable_are_left_out() -> None:
    model = make_classifier()
    for p in model[0].parameters():
        p.requires_grad_(False)
    options = ours.engine(model, Identity())
    assert options["projector"].proj_dim == 147
    computer = options["gradient_computer"](model=model, task=Margin())
    assert computer.compute_per_sample_grad([IMAGES[:2], LABELS[:2]]).shape == (2, 147)


def test_files_are_read_as_traker_wrote_them(theirs: Path, tmp_path: Path) -> None:
    found = ours.read_features(theirs, 1)
    for name in ("grads", "features", "out_to_loss"):
        assert np.array_equal(getattr(found, name).numpy(), np.load(theirs / "1" / f"{name}.mmap"))
    assert ours.read_targets(theirs, "test", 1).shape == (NUM_TARGETS, PROJ_DIM)
    traker = run(tmp_path, num_models=1, half=True, projector=Given())
    halved = ours.read_features(tmp_path)
    assert halved.grads.dtype == torch.float16
    assert np.array_equal(ours.read_scores(tmp_path, "test").numpy(), np.asarray(traker.scores))


def test_the_librarys_solve_gives_trakers_scores_from_its_files(theirs: Path) -> None:
    kernel, scores, weights = Gram(0.0, rescaled=True), 0, 0
    for model_id in (0, 1):
        stored = ours.read_features(theirs, model_id)
        targets = ours.read_targets(theirs, "test", model_id)
        found, _ = kernel.scores(targets, stored.grads, torch.zeros(NUM_TRAIN), [PROJ_DIM])
        scores, weights = scores + found / 2, weights + stored.out_to_loss / 2
    expected = ours.read_scores(theirs, "test").double()
    # traker inverts in float32.
    assert (scores.T * weights - expected).norm() <= 1e-3 * expected.norm()


def test_trakers_damping_is_a_fraction_of_the_mean_eigenvalue(tmp_path: Path) -> None:
    run(tmp_path, num_models=1, projector=Given(), lambda_reg=0.05)
    stored = ours.read_features(tmp_path)
    damping = 0.05 * min(stored.grads.shape) / stored.grads.square().sum().item()
    assert damping > 0.01  # enough to matter
    kernel = Gram(damping, rescaled=True)
    found, _ = kernel.scores(ours.read_targets(tmp_path, "test"), stored.grads, torch.zeros(NUM_TRAIN), [PROJ_DIM])
    expected = ours.read_scores(tmp_path, "test")
    assert (found.T * stored.out_to_loss - expected).norm() <= 1e-4 * expected.norm()


def test_what_is_missing_unfinished_or_of_another_form_is_named(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"metadata\.json"):
        ours.read_features(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"other_grads\.mmap"):
        ours.read_targets(theirs, "other")
    traker = trak.TRAKer(
        model=make_classifier(),
        task=Margin(),
        train_set_size=NUM_TRAIN,
        save_dir=tmp_path,
        device="cpu",
        logging_level=logging.ERROR,
        projector=Given(),
    )
    traker.load_checkpoint(MODEL.state_dict(), model_id=0)
    traker.featurize([IMAGES[:6], LABELS[:6]], num_samples=6)
    with pytest.raises(ValueError, match=r"every sample must be featurized, of model 0 .* 6 of 30 are"):
        ours.read_features(tmp_path)
    with pytest.raises(ValueError, match=rf"grads must be \[num_samples, {GRAD_DIM}\], got \[2, 3\]"):
        ours.TRAKProjector(MODEL, Identity()).project(torch.zeros(2, 3), model_id=0)


def test_a_task_that_gives_one_value_for_a_batch_is_refused() -> None:
    class Mean(Margin):
        def get_output(self, *args: Any) -> Tensor:
            return super().get_output(*args).mean()

    computer = ours.engine(MODEL, Identity())["gradient_computer"](model=MODEL, task=Mean())
    with pytest.raises(ValueError, match=r"task must return one value per sample of a batch, .* got \[\]"):
        computer.compute_per_sample_grad([IMAGES[:3], LABELS[:3]])

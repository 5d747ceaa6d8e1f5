"""Scores are the explicit formula, in the right order and with the right sign, and say what training would do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn
from models import IMAGE, Images, LinearDenoiser, SmallDenoiser, make_images, make_scheduler
from safetensors.torch import save_file
from score_runs import (
    NUM_DRAWS,
    NUM_QUERIES,
    NUM_STEPS,
    NUM_TRAIN,
    SCHEDULER,
    STEPS,
    assert_near,
    featurize,
    inverse,
    make_explicit,
    make_noise,
    make_trajectory,
    mean_gradient,
    score,
)
from torch import Tensor, nn

import journey
from journey.curvature.directions import Directions
from journey.errors import CorruptShardError, IncompleteStoreError, StoreMismatchError
from journey.exports.vectors import write_faiss
from journey.generation.trajectory import Trajectory
from journey.measure.draws import ExplicitDraws, StratifiedDraws
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled
from journey.scores.queries import plan_queries
from journey.scores.scores import Scores
from journey.scores.top import TopScores
from journey.store.part import ShardName


def explicit_scores(
    features: journey.Features, network: nn.Module, damping: float, steps: list[int] = STEPS, checkpoint: int = 0
) -> np.ndarray:
    """``query (M + damping I)^-1 Phi^T`` from the first principles, but for M. As the scores."""
    timesteps, noise = make_explicit()
    trajectory, query_noise = make_trajectory(), make_noise(len(steps))
    train = zip(make_images(NUM_TRAIN), timesteps, noise, strict=True)
    phi = torch.stack([mean_gradient(network, *sample) for sample in train]).numpy()
    kernel = inverse(features, damping, checkpoint)
    scores = np.empty((NUM_QUERIES, len(steps), NUM_TRAIN))
    for q in range(NUM_QUERIES):
        for s, t in enumerate(steps):
            image = trajectory.x0_hat[q, STEPS.index(t)]
            query = mean_gradient(network, image, torch.full((NUM_DRAWS,), t), query_noise[q, s])
            scores[q, s] = query.numpy() @ kernel @ phi.T
    return scores


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10])
def test_scores_are_the_explicit_formula(tmp_path: Path, damping: float) -> None:
    features = featurize(tmp_path / "f")
    found = score(features, damping=damping)
    assert_near(found.values, explicit_scores(features, SmallDenoiser(), damping))
    assert (found.timesteps.tolist(), found.train_ids, found.damping) == (STEPS, list(range(NUM_TRAIN)), damping)


def queries(network: nn.Module) -> list[list[Tensor]]:
    """Gradients of every query at every step."""
    trajectory, noise = make_trajectory(), make_noise()
    return [
        [
            mean_gradient(network, trajectory.x0_hat[q, s], torch.full((NUM_DRAWS,), t), noise[q, s])
            for s, t in enumerate(STEPS)
        ]
        for q in range(NUM_QUERIES)
    ]


@pytest.mark.parametrize("steps", [[40], [10, 80]])
def test_chosen_steps_are_scored_in_the_order_that_is_asked_for(tmp_path: Path, steps: list[int]) -> None:
    features = featurize(tmp_path / "f")
    found = score(features, steps=steps, noise=make_noise(len(steps)))
    assert found.timesteps.tolist() == steps
    assert_near(found.values, explicit_scores(features, SmallDenoiser(), 0.1, steps))


def query_loss(network: nn.Module, image: Tensor, t: int, noise: Tensor) -> float:
    """Mean training loss of an image at one timestep, in float64."""
    times = torch.full((len(noise),), t)
    x_t = SCHEDULER.add_noise(image.double().expand(len(noise), *IMAGE), noise.double(), times)
    with torch.no_grad():
        return torch.nn.functional.mse_loss(network(x_t, times), noise.double()).item()


def fit_(network: nn.Module) -> None:
    """Bring a network near the minimum of its training loss, so that images pull it in different directions."""
    timesteps, noise = make_explicit()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        for image, times, e in zip(make_images(NUM_TRAIN), timesteps, noise, strict=True):
            x_t = SCHEDULER.add_noise(image.expand(NUM_DRAWS, *IMAGE), e, times)
            (torch.nn.functional.mse_loss(network(x_t, times), e) / NUM_TRAIN).backward()
        optimizer.step()


def test_a_positive_score_means_that_training_on_the_image_lowers_the_loss_of_the_query(tmp_path: Path) -> None:
    """The loss is quadratic in the parameters, so a central difference along a gradient step is exact."""
    network, rate, damping = LinearDenoiser(), 0.1, 1e6
    fit_(network)
    features = featurize(tmp_path / "f", network)
    found = score(features, damping=damping)
    trajectory, noise, (timesteps, train_noise) = make_trajectory(), make_noise(), make_explicit()
    lowered = torch.empty(NUM_QUERIES, NUM_STEPS, NUM_TRAIN, dtype=torch.float64)
    for i, image in enumerate(make_images(NUM_TRAIN)):
        grad = mean_gradient(network, image, timesteps[i], train_noise[i])
        before, after = (copy.deepcopy(network).double() for _ in range(2))
        here = nn.utils.parameters_to_vector(before.parameters()).detach()
        nn.utils.vector_to_parameters(here + rate * grad, before.parameters())
        nn.utils.vector_to_parameters(here - rate * grad, after.parameters())
        for q in range(NUM_QUERIES):
            for s, t in enumerate(STEPS):
                losses = [query_loss(net, trajectory.x0_hat[q, s], t, noise[q, s]) for net in (before, after)]
                lowered[q, s, i] = (losses[0] - losses[1]) / (2 * rate)
    # The damping is so large that the inverse is the identity over it.
    torch.testing.assert_close(
        found.values.double() * damping, lowered, rtol=1e-4, atol=1e-4 * lowered.abs().max().item()
    )
    assert (lowered > 0).any()
    assert (lowered < 0).any()
    best, worst = (torch.from_numpy(ranked.ids[..., 0]) for ranked in found.top(1))
    assert torch.equal(best, lowered.argmax(-1)), "the first proponent is not the image that lowers the loss most"
    assert torch.equal(worst, lowered.argmin(-1)), "the first opponent is not the image that raises the loss most"


def test_an_image_is_its_own_strongest_proponent(tmp_path: Path) -> None:
    timesteps, noise = make_explicit()
    draws = ExplicitDraws(torch.full_like(timesteps, 40), noise)
    features = featurize(tmp_path / "f", draws=draws)
    images = make_images(NUM_TRAIN)
    trajectory = Trajectory(torch.tensor([40]), images[:, None], images[:, None], images)
    found = score(features, trajectory, noise=noise[:, None])
    assert found.top(1).proponents.ids.flatten().tolist() == list(range(NUM_TRAIN))


def test_permuting_the_training_set_permutes_the_scores(tmp_path: Path) -> None:
    order = [3, 0, 4, 2, 1]
    timesteps, noise = make_explicit()
    features = featurize(tmp_path / "f")
    expected = score(features).values[..., order]
    draws = ExplicitDraws(timesteps[order], noise[order])
    dataset = Images(make_images(NUM_TRAIN)[order])
    found = score(featurize(tmp_path / "g", dataset=dataset, draws=draws, fit=features.fit))
    assert_near(found.values, expected.numpy(), 1e-5)


def test_permuting_the_queries_permutes_the_scores(tmp_path: Path) -> None:
    features, trajectory = featurize(tmp_path / "f"), make_trajectory()
    flipped = replace(trajectory, **{name: getattr(trajectory, name).flip(0) for name in ("x_t", "x0_hat", "images")})
    expected = score(features, trajectory).values.flip(0)
    assert_near(score(features, flipped, noise=make_noise().flip(0)).values, expected.numpy(), 1e-5)


def test_scores_under_several_checkpoints_are_averaged(tmp_path: Path) -> None:
    network = SmallDenoiser(0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = [SmallDenoiser(seed) for seed in (1, 2)]
    features = featurize(tmp_path / "both", network, checkpoints=weights)
    found = score(features)
    alone = [explicit_scores(features, model, 0.1, checkpoint=i) for i, model in enumerate(weights)]
    assert_near(found.values, (alone[0] + alone[1]) / 2)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


def test_bins_enter_the_sum_with_their_weights(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f", draws=StratifiedDraws(num_draws=2, bins=3))
    weights = torch.tensor([0.33, 0.33, 0.34], dtype=torch.float64)
    phi = torch.einsum("nbk,b->nk", features.store.features("0").double(), weights).numpy()
    query = np.stack([np.stack([row.numpy() for row in rows]) for rows in queries(SmallDenoiser())])
    assert_near(score(features).values, query @ inverse(features, 0.1) @ phi.T)


@pytest.mark.parametrize("row", ["int8", "int4", "float16"])
def test_scores_of_packed_rows_are_the_formula_of_what_they_unpack_to(tmp_path: Path, row: str) -> None:
    features = featurize(tmp_path / "f", projector=Scaled(CountSketch(128)), row=row)
    options = {"steps": None, "interval": None, "region": None, "num_draws": NUM_DRAWS, "seed": 0}
    plan = plan_queries(features, make_trajectory(), noise=make_noise(), **options)
    query = plan.measure(features, None, False).mean(2).double().numpy()
    expected = query @ inverse(features, 0.1) @ features.matrix().double().numpy().T
    assert_near(score(features).values, expected)


def test_keyed_noise_gives_the_same_scores_for_any_other_queries_and_steps(tmp_path: Path) -> None:
    features, trajectory = featurize(tmp_path / "f", projector=CountSketch(64)), make_trajectory()
    whole = score(features, noise=None, num_draws=4, seed=3)
    first = Trajectory(trajectory.timesteps, trajectory.x_t[:1], trajectory.x0_hat[:1], trajectory.images[:1])
    part = score(features, first, noise=None, num_draws=4, seed=3, steps=[10])
    assert_near(part.values, whole.values[:1, 2:].numpy(), 1e-5)
    other = score(features, noise=None, num_draws=4, seed=4)
    assert (other.values - whole.values).abs().max() > 1e-3 * whole.values.abs().max()


def test_more_rows_than_a_batch_holds_give_the_same_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = featurize(tmp_path / "f")
    expected = score(features)
    monkeypatch.setattr("journey.scores.queries._ROWS_PER_BATCH", NUM_DRAWS)  # one query at a time
    assert_near(score(features).values, expected.values.numpy(), 1e-5)


def test_the_damping_is_free_after_featurizing(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    first = {damping: score(features, damping=damping).values for damping in (0.1, 1.0, 3.0)}
    assert all(torch.equal(score(features, damping=damping).values, found) for damping, found in first.items())
    assert not torch.equal(first[0.1], first[1.0])


# Whole images.


def test_a_whole_image_is_measured_over_the_whole_range(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    images = torch.tanh(randn(3, *IMAGE, seed=50))
    found = journey.score(features, images=images, num_draws=8, seed=2, damping=0.1, progress=False)
    draws = StratifiedDraws(8, seed=2)
    ids = [f"query {i}" for i in range(3)]
    times, noise = draws.timesteps(ids, 100)[:, 0], draws.noise(ids, IMAGE, torch.device("cpu"))[:, 0]
    query = torch.stack([mean_gradient(SmallDenoiser(), *one) for one in zip(images, times, noise, strict=True)])
    phi = features.matrix().double().numpy()
    assert_near(found.values, query.numpy()[:, None] @ inverse(features, 0.1) @ phi.T)
    assert found.timesteps.tolist() == [0]


def test_generated_images_are_scored_as_the_same_pictures_are(tmp_path: Path) -> None:
    features, trajectory = featurize(tmp_path / "f"), make_trajectory()
    generated = journey.score(features, images=trajectory, num_draws=4, progress=False)
    pictures = journey.score(features, images=Images(trajectory.images), num_draws=4, progress=False)
    assert torch.equal(generated.values, pictures.values)


def test_regions_of_whole_images_add_up(tmp_path: Path) -> None:
    features, images = featurize(tmp_path / "f"), make_trajectory().images
    parts = [
        journey.score(features, images=images, region=box, num_draws=4, progress=False).values
        for box in ((0, 0, 8, 3), (0, 3, 8, 8), (0, 0, 8, 8))
    ]
    assert_near(parts[0] + parts[1], parts[2].numpy(), 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a trajectory, to score its steps, or images"),
        ({"trajectory": True, "images": True}, "give a trajectory, to score its steps, or images"),
        ({"images": True, "steps": [40], "completions": 2}, "steps, completions belong to the steps of a trajectory"),
        ({"images": True, "num_draws": 0}, "num_draws must be positive, got 0"),
        ({"images": torch.zeros(1, 3, 8, 8)}, r"images\[0\]"),
        (
            {"trajectory": True, "conditions": journey.Condition({"x": torch.zeros(2, 1)})},
            "conditions belong to images",
        ),
    ],
)
def test_a_question_that_is_none_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    trajectory = make_trajectory()
    given = {name: trajectory if value is True else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        journey.score(featurize(tmp_path / "f", projector=CountSketch(32)), progress=False, **given)


# Standard errors.


def repeated(tmp_path: Path, count: int, **options: Any) -> list[Scores]:
    """Scores from independent draws of training images and queries, of one fit."""
    first = featurize(tmp_path / "0", draws=StratifiedDraws(16, seed=0))
    runs = [first]
    runs += [featurize(tmp_path / str(i), draws=StratifiedDraws(16, seed=i), fit=first.fit) for i in range(1, count)]
    return [score(run, noise=None, num_draws=16, seed=i, **options) for i, run in enumerate(runs)]


def test_standard_errors_are_the_spread_of_independent_runs(tmp_path: Path) -> None:
    runs = repeated(tmp_path, 24)
    spread = torch.stack([run.values for run in runs]).std(0).square().mean().sqrt().item()
    claimed = torch.stack([run.standard_errors() for run in runs]).square().mean().sqrt().item()
    # Halves of the draws are of other timesteps too, so that the claim is an upper bound.
    assert 0.8 * spread < claimed < 2.5 * spread


def test_the_standard_error_of_a_sum_is_that_of_its_score_and_grows(tmp_path: Path) -> None:
    scores = repeated(tmp_path, 1)[0]
    one = scores.total([3])
    torch.testing.assert_close(one.values, scores.values[..., 3])
    torch.testing.assert_close(one.errors, scores.standard_errors()[..., 3])
    both = scores.total([3, 1])
    torch.testing.assert_close(both.values, scores.values[..., 3] + scores.values[..., 1])
    assert (both.errors > one.errors).all()
    for wrong in ([], [7], [1, 1]):
        with pytest.raises(ValueError, match="train_ids must be different images that have a score"):
            scores.total(wrong)


def test_strengths_are_signed_squares_without_errors(tmp_path: Path) -> None:
    scores = repeated(tmp_path, 1)[0]
    found = scores.strengths()
    torch.testing.assert_close(found.values.abs(), scores.values.square())
    assert torch.equal(found.values.sign(), scores.values.sign())
    assert found.standard_errors().isnan().all()


def test_errors_are_saved_with_their_scores(tmp_path: Path) -> None:
    scores = repeated(tmp_path, 1)[0]
    scores.save(tmp_path / "scores.safetensors")
    assert torch.equal(Scores.load(tmp_path / "scores.safetensors").standard_errors(), scores.standard_errors())


# The object that is returned.


def make_scores(values: Any, ids: list[int] | None = None) -> Scores:
    """Scores of one query at one step."""
    row = torch.tensor(values, dtype=torch.float32)
    return Scores(row[None, None], torch.tensor([40]), list(range(len(row))) if ids is None else ids, 0.1)


def test_top_gives_the_strongest_of_either_sign_with_their_dataset_ids() -> None:
    top = make_scores([0.5, -2.0, 3.0, 0.0, -1.0], ids=[10, 11, 12, 13, 14]).top(2)
    assert (top.proponents.ids.flatten().tolist(), top.proponents.values.flatten().tolist()) == ([12, 10], [3.0, 0.5])
    assert (top.opponents.ids.flatten().tolist(), top.opponents.values.flatten().tolist()) == ([11, 14], [-2.0, -1.0])
    assert (top.proponents.ids.dtype, top.proponents.values.dtype) == (np.int64, torch.float32)
    assert top.proponents.ids.shape == (1, 1, 2)


def test_equal_scores_are_ranked_by_id() -> None:
    values = [1.0, 2.0] * 40  # more than the sixteen entries up to which sorting happens to be stable
    top = make_scores(values).top(40)
    assert top.proponents.ids.flatten().tolist() == list(range(1, 80, 2))
    assert top.opponents.ids.flatten().tolist() == list(range(0, 80, 2))


def test_every_query_and_step_is_ranked_by_itself() -> None:
    values = randn(2, 3, 7)
    scores = Scores(values, torch.tensor(STEPS), list(range(7)), 0.1)
    top = scores.top(7)
    for q in range(2):
        for s in range(3):
            order = sorted(range(7), key=lambda i: -values[q, s, i].item())
            assert top.proponents.ids[q, s].tolist() == order
            assert top.opponents.ids[q, s].tolist() == order[::-1]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_more_images_than_there_are_cannot_be_ranked(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be between 1 and the 5 training images, got {k}"):
        make_scores([0.5, -2.0, 3.0, 0.0, -1.0]).top(k)


def test_save_and_load_give_the_same_scores(tmp_path: Path) -> None:
    saved = Scores(randn(2, 3, 5), torch.tensor(STEPS), [4, 0, 9, 1, 2], 1 / 3)
    parts = replace(saved, interval=(10, 60), train_interval=(0, 50), region=randn(2, 8, 8, seed=1))
    for scores in (saved, parts):
        scores.save(tmp_path / "scores.safetensors")
        found = Scores.load(tmp_path / "scores.safetensors")
        assert torch.equal(found.values, scores.values)
        assert torch.equal(found.timesteps, scores.timesteps)
        assert (found.train_ids, found.damping) == (scores.train_ids, scores.damping)
        assert (found.interval, found.train_interval) == (scores.interval, scores.train_interval)
        assert found.region is scores.region or torch.equal(found.region, scores.region)


def test_a_file_that_holds_no_scores_is_refused(tmp_path: Path) -> None:
    save_file({"values": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no saved scores"):
        Scores.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 5), (2, 3, 6)])
def test_scores_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"values must be \[num_queries, num_steps, num_train\] = \[\.\.\., 3, 5\], got"
    ):
        Scores(torch.zeros(shape), torch.tensor(STEPS), list(range(5)), 0.1)


# Faults.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [80, 41]}, r"steps must be among the recorded timesteps \[80, 40, 10\], got \[41\]"),
        ({"steps": []}, r"steps must be among the recorded timesteps .* got none"),
        ({"damping": -1.0}, r"damping must be a number >= 0, got -1\.0"),
        ({"damping": float("nan")}, "damping must be a number >= 0, got nan"),
        ({"damping": "gcv"}, "damping must be a number >= 0, got 'gcv'"),
        ({"noise": None, "num_draws": 0}, "num_draws must be positive, got 0"),
        ({"noise": make_noise(2)}, r"noise must be .* = \[2, 3, 4, 1, 8, 8\], got \[2, 2, 4, 1, 8, 8\]"),
        ({"noise": make_noise()[:, :, :0]}, r"noise must be \[num_queries, num_steps, num_draws, C, H, W\]"),
        ({"noise": randn(2)}, r"noise must be .* got \[2\]"),
    ],
)
def test_an_argument_out_of_range_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    features = featurize(tmp_path / "f", projector=CountSketch(32))
    with pytest.raises(ValueError, match=message):
        score(features, **options)


def test_a_model_that_changed_since_featurizing_is_refused(tmp_path: Path) -> None:
    network = SmallDenoiser()
    features = featurize(tmp_path / "f", network)
    network.outward.bias.data += 1e-6
    with pytest.raises(
        StoreMismatchError, match=r"fingerprints\.weights\[0\]: .* Give the model, .* or featurize again"
    ):
        score(features)


def test_a_checkpoint_that_changed_since_featurizing_is_refused(tmp_path: Path) -> None:
    checkpoint = SmallDenoiser(1)
    features = featurize(tmp_path / "f", checkpoints=[checkpoint])
    checkpoint.time.weight.data[0, 0] += 1
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.weights\[0\]"):
        score(features)


def test_draws_that_are_not_those_of_the_features_are_refused(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    with pytest.raises(StoreMismatchError, match=r"fingerprints\.draws\.class"):
        score(replace(features, draws=StratifiedDraws()))


def test_a_damaged_shard_is_never_scored_with(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    path = features.store.shard_path("0", ShardName("000000", 1))
    intact = path.read_bytes()
    path.write_bytes(intact[:-100] + bytes([intact[-100] ^ 1]) + intact[-99:])
    with pytest.raises(CorruptShardError, match=rf"{path.name} is damaged: expected the SHA-256"):
        score(features)
    path.write_bytes(intact[:-1])
    with pytest.raises(CorruptShardError, match=f"{path.name} is damaged or .*: expected {len(intact)} bytes"):
        score(features)


def test_features_that_are_not_complete_are_refused(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    for number in (0, 2):
        features.store.shard_path("0", ShardName("000000", number)).unlink()
    with pytest.raises(IncompleteStoreError, match=r"misses 2 of 3 shards"):
        score(features)


@pytest.mark.parametrize("changes", [{"beta_end": 0.02}, {"num_train_timesteps": 1000}], ids=str)
def test_a_trajectory_of_another_schedule_is_refused_whatever_is_asked(tmp_path: Path, changes: Any) -> None:
    network = SmallDenoiser()
    features = featurize(tmp_path, network, draws=StratifiedDraws(2, bins=2))
    trajectory = journey.record((network, make_scheduler(**changes)), num_inference_steps=4, progress=False)
    for asked in (
        lambda: journey.score(features, trajectory, progress=False),
        lambda: journey.score(features, trajectory, completions=1, progress=False),
        lambda: journey.influence_matrix(features, trajectory, 0, progress=False),
        lambda: journey.inspect(features, trajectory, progress=False),
    ):
        with pytest.raises(ValueError, match="trajectory must be of the features' noise schedule"):
            asked()


@pytest.mark.parametrize("checkpoints", [None, [SmallDenoiser(1), SmallDenoiser(2)]], ids=["own", "two"])
def test_the_strongest_scores_are_those_of_all(tmp_path: Path, checkpoints: Any) -> None:
    features = featurize(tmp_path / "f", checkpoints=checkpoints)
    wanted = score(features).top(3)
    found = score(features, top=3)
    assert isinstance(found, TopScores)
    assert found.num_train == NUM_TRAIN
    for mine, other in zip(found.top(3), wanted, strict=True):
        assert mine.ids.tolist() == other.ids.tolist()
        assert torch.equal(mine.values, other.values)
        torch.testing.assert_close(mine.errors, other.errors)


def test_candidates_are_scored_alone_and_as_among_all(tmp_path: Path) -> None:
    features = featurize(tmp_path / "f")
    whole = score(features)
    found = score(features, candidates=[4, 1])
    assert found.train_ids == [1, 4]
    torch.testing.assert_close(found.values, whole.values[..., [1, 4]])
    assert found.errors is not None
    torch.testing.assert_close(found.standard_errors(), whole.standard_errors()[..., [1, 4]])
    with pytest.raises(ValueError, match=r"ids must be of images that have features, got \[9\]"):
        score(features, candidates=[1, 9])
    for wrong in (5, "1"):
        with pytest.raises(TypeError, match="ids must be a list of ids"):
            score(features, candidates=wrong)


def test_faiss_finds_the_strongest_scores_with_the_solved_query(tmp_path: Path) -> None:
    import faiss

    features = featurize(tmp_path / "f")
    scores = score(features)
    assert scores.solutions is not None
    write_faiss(tmp_path / "index", features.blocks(), features.featurizer.features_dim, quantizer="float16")
    index = faiss.read_index(str(tmp_path / "index"))
    values, ids = index.search(scores.solutions[0].flatten(0, 1).numpy(), 3)
    wanted = scores.top(3).proponents
    assert ids.tolist() == wanted.ids.reshape(-1, 3).tolist()
    torch.testing.assert_close(torch.from_numpy(values), wanted.values.flatten(0, 1), rtol=2e-3, atol=1e-3)
    strongest = score(features, top=2)
    assert torch.equal(strongest.solutions, scores.solutions)


def test_faiss_finds_the_strongest_cut_scores(tmp_path: Path) -> None:
    import faiss

    features = featurize(tmp_path / "f", checkpoints=[SmallDenoiser(1), SmallDenoiser(2)])
    scores = score(features)
    assert scores.solutions is not None
    for number in range(2):
        cut = Directions.of(features.fit.gram(number), features.blocks(number), 3, damping=0.1)
        blocks = features.blocks(number, directions=cut)
        assert [ids for ids, _ in blocks] == [ids for ids, _ in features.blocks(number)]
        write_faiss(tmp_path / "index", blocks, 3, quantizer="float16")
        index = faiss.read_index(str(tmp_path / "index"))
        queries = cut.queries(scores.solutions[number].flatten(0, 1))
        rows = features.matrix(number).double() @ cut.of_rows.double()
        wanted = (queries.double() @ rows.T).float()
        values, ids = index.search(queries.numpy(), NUM_TRAIN)
        found = torch.empty_like(wanted).scatter_(1, torch.from_numpy(ids), torch.from_numpy(values))
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3 * wanted.abs().max().item())
        assert ids[:, 0].tolist() == wanted.argmax(1).tolist()
        with pytest.raises(AssertionError):  # of the whole query
            index.search(scores.solutions[number].flatten(0, 1).numpy(), 1)
        with pytest.raises(ValueError, match=r"rows must be \[n, proj_dim\] = \[2, 4\], got \[2, 3\]"):
            write_faiss(tmp_path / "other", blocks, 4)
    with pytest.raises(ValueError, match=r"directions must be of rows of .* as these features have, got those of .* 3"):
        features.blocks(directions=Directions(cut.of_rows[:3], cut.of_queries[:3]))

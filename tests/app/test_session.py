"""What a visitor gets is what the functions of the library give, to the last bit, whoever else is there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from app_cases import LABELS, NUM_TRAIN, bright, make_workbench, painted
from PIL import Image

import journey
from journey.app.resemblance import Resemblance
from journey.app.session import RESEMBLANCE, WHOLE, Session
from journey.app.turn import CancelledError
from journey.app.workbench import Unseen, Workbench, groups_of_captions
from journey.generation.noised import noised_trajectory
from journey.locks import exclusively
from journey.report.csv import write_csv
from journey.scores.scores import Scores

STEPS = 8


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return make_workbench(tmp_path_factory.mktemp("features"))


def make_mask() -> np.ndarray:
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:4], mask[5, 1:4] = 255, 51
    return mask


def direct(workbench: Workbench, trajectory: journey.Trajectory, **options: Any) -> Scores:
    return journey.score(workbench.features, trajectory, steps=trajectory.spread(3), progress=False, **options)


def assert_same(found: Scores | None, expected: Scores) -> None:
    assert found is not None
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.timesteps, expected.timesteps)
    assert torch.equal(found.standard_errors(), expected.standard_errors())


def recorded(workbench: Workbench, seed: int) -> journey.Trajectory:
    return journey.record(workbench.denoiser, seed=seed, num_inference_steps=STEPS, progress=False)


def test_a_generation_and_its_parts_are_scored_as_by_the_library(workbench: Workbench) -> None:
    session = Session(workbench)
    session.generate(seed=3, num_inference_steps=STEPS)
    trajectory = recorded(workbench, 3)
    assert session.trajectory is not None
    assert torch.equal(session.trajectory.x0_hat, trajectory.x0_hat)
    assert_same(session.scores, direct(workbench, trajectory))
    mask = make_mask()
    assert session.attribute(painted(mask)) == "part 1"
    assert session.attribute(painted(255 - mask)) == "part 2"
    weights = torch.from_numpy(mask).float() / 255
    assert_same(session.regions["part 1"], direct(workbench, trajectory, region=weights))
    assert_same(session.regions["part 2"], direct(workbench, trajectory, region=torch.from_numpy(255 - mask) / 255))
    session.generate(seed=4, num_inference_steps=STEPS)
    assert session.regions == {}, "parts of the image before are kept"


def test_an_image_of_ones_own_is_noised_to_the_steps_of_the_sampler(workbench: Workbench, tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(pixels).save(tmp_path / "own.png")
    session = Session(workbench)
    session.open(tmp_path / "own.png", seed=5, num_inference_steps=STEPS)
    image = (torch.from_numpy(pixels).float() / 127.5 - 1)[None, None]
    visited = recorded(workbench, 0).timesteps.tolist()
    expected = noised_trajectory(workbench.denoiser, image, visited, seed=5)
    assert session.trajectory is not None
    assert torch.equal(session.trajectory.x_t, expected.x_t)
    assert_same(session.scores, direct(workbench, expected))
    session.decide(feature="bright", completions=2)  # its steps can be continued, as those of a generation


def test_transitions_are_those_of_the_library(workbench: Workbench) -> None:
    session = Session(workbench)
    session.generate(seed=3, num_inference_steps=STEPS)
    assert session.trajectory is not None
    session.attribute(painted(make_mask()))
    assert session.decide(feature="bright", completions=4) == "bright"
    assert session.decide("part 1", completions=4) == f"part 1 {RESEMBLANCE}"
    weights = torch.from_numpy(make_mask()).float() / 255
    looks = Resemblance(session.trajectory.image_pixels[0], workbench.dataset, weights)
    for name, classifier in (("bright", bright), (f"part 1 {RESEMBLANCE}", looks)):
        expected = journey.transitions(
            workbench.denoiser, session.trajectory, classifier, completions=4, progress=False
        )
        assert torch.equal(session.transitions[0, name].outcomes, expected.outcomes)
    assert bool(looks(session.trajectory.image_pixels)), "the image looks like itself"


def test_resemblance_is_half_of_what_lies_between_the_image_and_others() -> None:
    final, others = torch.zeros(1, 2, 2), [torch.full((1, 2, 2), value) for value in (0.5, 1.0, 0.25)]
    top = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    images = torch.stack([torch.full((1, 2, 2), value) for value in (0.34, 0.36)])  # squares around .125, half of .25
    assert Resemblance(final, others)(images).tolist() == [True, False]
    images[:, :, 1] = 1  # outside of the part
    assert Resemblance(final, others, top)(images).tolist() == [True, False]


def test_two_visitors_at_once_get_what_each_asked_for(workbench: Workbench) -> None:
    sessions = [Session(workbench) for _ in range(2)]

    def visit(number: int) -> None:
        for _ in range(2):
            sessions[number].generate(seed=number, num_inference_steps=STEPS)
            sessions[number].attribute(painted(make_mask() if number else 255 - make_mask()))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, session in enumerate(sessions):
        trajectory = recorded(workbench, number)
        mask = torch.from_numpy(make_mask() if number else 255 - make_mask()).float() / 255
        assert_same(session.scores, direct(workbench, trajectory))
        assert_same(session.regions["part 1"], direct(workbench, trajectory, region=mask))


def test_cancelled_work_ends_at_the_next_pass_and_changes_nothing(workbench: Workbench) -> None:
    session, passes = Session(workbench), 0
    session.generate(seed=3, num_inference_steps=STEPS)
    before = (session.trajectory, session.scores)

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 2:
            session.cancel()

    handle = workbench.denoiser.network.register_forward_hook(count)
    with pytest.raises(CancelledError):
        session.generate(seed=4, num_inference_steps=STEPS)
    assert passes == 2
    assert (session.trajectory, session.scores) == before
    handle.remove()
    session.generate(seed=4, num_inference_steps=STEPS)  # what was cancelled before ends nothing now
    assert_same(session.scores, direct(workbench, recorded(workbench, 4)))
    assert not workbench.denoiser.network._forward_pre_hooks


def test_who_waits_for_the_network_can_cancel(workbench: Workbench) -> None:
    session, found = Session(workbench), []

    def wait() -> None:
        try:
            session.generate(seed=1, num_inference_steps=STEPS)
        except CancelledError as error:
            found.append(error)

    before = session._stop
    with exclusively(workbench.denoiser.network):
        thread = threading.Thread(target=wait)
        thread.start()
        while session._stop is before:
            pass
        session.cancel()
    thread.join()
    assert len(found) == 1


def test_the_page_the_table_and_parquet_hold_the_same_scores(workbench: Workbench, tmp_path: Path) -> None:
    import pandas as pd

    session = Session(workbench)
    session.generate(seed=3, num_inference_steps=STEPS)
    session.attribute(painted(make_mask()))
    files = {path.name: path for path in session.write()}
    assert list(files) == ["report.html", "report.csv", "scores.parquet", "part-1.parquet"]
    run = session.run()
    assert files["report.html"].read_text(encoding="utf-8") == session.page()
    assert {"kind 0", "kind 1"} == set(run.groups)
    expected = write_csv(tmp_path / "r.csv", run.trajectory, run.scores, top=9, labels=LABELS, regions=run.regions)
    assert files["report.csv"].read_bytes() == expected.read_bytes()
    for name, scores in (("scores", run.scores), ("part-1", run.regions["part 1"])):
        table = pd.read_parquet(files[f"{name}.parquet"])
        assert np.array_equal(table["score"].to_numpy(), scores.values.flatten().numpy())


def test_without_files_training_images_are_known_by_their_ids(workbench: Workbench) -> None:
    unseen = Workbench(workbench.features, Unseen(workbench.features), num_scored=2)
    session = Session(unseen)
    session.generate(seed=1, num_inference_steps=STEPS)
    assert "#" in session.page()
    with pytest.raises(ValueError, match="by comparison with the training images: start the app with data"):
        session.decide()


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda s: s.attribute(painted(make_mask())), "generate an image first, or give one"),
        (lambda s: s.generate("a red apple"), "this model is told nothing: leave the prompt empty"),
        (lambda s: s.generate("a" * 2001), "at most 2,000 characters, got 2,001"),
        (lambda s: s.run(), "generate an image first"),
    ],
)
def test_what_cannot_be_done_is_told(workbench: Workbench, work: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        work(Session(workbench))


def test_unknown_parts_and_features_are_told(workbench: Workbench) -> None:
    session = Session(workbench)
    session.generate(seed=1, num_inference_steps=STEPS)
    with pytest.raises(ValueError, match=r"part must be one of \['the whole image'\], got 'part 7'"):
        session.decide("part 7")
    with pytest.raises(ValueError, match=r"feature must be one of .*'bright'\], got 'dark'"):
        session.decide(WHOLE, "dark")


def test_captions_are_groups_where_they_are_few_and_shared(workbench: Workbench) -> None:
    found = groups_of_captions(workbench.features, workbench.dataset, LABELS)
    assert found == {f"kind {k}": [i for i in range(NUM_TRAIN) if i % 2 == k] for k in range(2)}
    for labels in ([f"image {i}" for i in range(NUM_TRAIN)], ["the same"] * NUM_TRAIN):
        assert groups_of_captions(workbench.features, workbench.dataset, labels) == {}

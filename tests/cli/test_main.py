"""The command line: every command does its job on a tiny model, repeats, and explains what is wrong."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_same_but_for_rounding
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from journey import __version__
from journey.cli.main import main
from journey.cli.transitions import load_transitions
from journey.demo import digits_demo as demo
from journey.demo.digits import DigitsDataset, load_digits_dataset
from journey.generation.record import record
from journey.generation.trajectory import Trajectory
from journey.scores.scores import Scores
from journey.store.store import FeatureStore


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    path = tmp_path_factory.mktemp("model")
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        pixels = torch.randint(0, 256, (10, 12, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path / f"{i}.png")
    return path


@pytest.fixture(scope="module")
def features(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "features"
    arguments = ["featurize", "--model", str(model), "--data", str(images), "--out", str(out), "--quiet"]
    assert main([*arguments, "--proj-dim", "64", "--num-draws", "2", "--shard-size", "4"]) == 0
    return out


def test_info_prints_the_version_and_whether_cuda_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.replace("CUDA kernels", "CUDA_kernels").splitlines()
    )
    assert lines["journey"] == __version__
    assert lines["CUDA_kernels"].startswith(("on: ", "off: "))


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["featurize", "--help"])
    assert stop.value.code == 0
    assert "journey featurize --model" in capsys.readouterr().out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_featurize_leaves_its_command_beside_the_store_and_can_be_repeated(
    features: Path, model: Path, images: Path
) -> None:
    before = contents(features)
    command = before["command.txt"].decode().split()
    assert command[:2] == ["journey", "featurize"]
    assert main(command[1:]) == 0
    assert contents(features) == before
    assert FeatureStore.open(features).planned_ids() == {f"{i}.png" for i in range(6)}


def test_plan_tells_what_featurize_writes_and_leaves_no_command(
    features: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(images)
    arguments = ["plan", "--model", str(model), "--data", str(images), "--proj-dim", "64", "--num-draws", "2"]
    arguments += ["--shard-size", "4", "--seconds", "0.001"]
    assert main([*arguments, "--json", "--devices", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    store = [path for path in features.iterdir() if path.is_file() and path.name != "command.txt"]
    assert told["store_bytes"] == sum(path.stat().st_size for path in store)
    assert told["devices"] == 2
    assert main([*arguments, "--num-images", "1000000"]) == 0
    assert capsys.readouterr().out.startswith("1,000,000 images\n")
    assert main([*arguments, "--num-images", "0"]) == 1
    assert "num_images must be a positive integer, got 0" in capsys.readouterr().err
    assert contents(images) == before


def test_score_reads_the_store_and_writes_scores_and_report(
    features: Path, model: Path, images: Path, tmp_path: Path
) -> None:
    arguments = ["score", "--model", str(model), "--data", str(images), "--features", str(features), "--quiet"]
    numbers = ["--num-images", "2", "--num-inference-steps", "5", "--num-scored", "3", "--query-draws", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out"), *numbers]) == 0
    scores = Scores.load(tmp_path / "out" / "scores.safetensors")
    trajectory = Trajectory.load(tmp_path / "out" / "trajectory.safetensors")
    assert list(scores.values.shape) == [2, 3, 6]
    assert set(scores.timesteps.tolist()) <= set(trajectory.timesteps.tolist())
    assert "0.png" in (tmp_path / "out" / "report.html").read_text()
    with Image.open(tmp_path / "out" / "report.png") as picture:
        picture.verify()


def test_features_of_a_fit_that_lies_elsewhere_are_scored_with_it(model: Path, images: Path, tmp_path: Path) -> None:
    given = ["--model", str(model), "--data", str(images), "--quiet"]
    fit, store = str(tmp_path / "fit"), str(tmp_path / "features")
    assert main(["fit", *given, "--out", fit, "--proj-dim", "64"]) == 0
    measured = ["--proj-dim", "64", "--num-draws", "2"]
    assert main(["featurize", *given, "--out", store, "--fit", fit, *measured]) == 0
    numbers = ["--num-inference-steps", "2", "--num-scored", "1", "--query-draws", "2"]
    scored = ["score", *given, "--features", store, *numbers]
    assert main([*scored, "--out", str(tmp_path / "without")]) == 1
    assert main([*scored, "--out", str(tmp_path / "out"), "--fit", fit]) == 0
    assert list(Scores.load(tmp_path / "out" / "scores.safetensors").values.shape) == [1, 1, 6]


def test_quiet_hides_the_bars_of_loading_too_and_leaves_them_as_they_were(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = ["record", "--num-inference-steps", "2", "--out", str(tmp_path), "--model"]
    for quiet, place, status in ((False, model, 0), (True, model, 0), (True, tmp_path / "none", 1), (False, model, 0)):
        assert main([*recording, str(place), *["--quiet"][:quiet]]) == status
        told = capsys.readouterr().err
        assert ("Loading pipeline components" in told) == (not quiet)
        assert status or quiet == (not told)


@pytest.mark.parametrize("error", [AttributeError("no such part"), KeyError("part"), IndexError("too far")])
def test_an_error_of_a_strange_part_is_told_with_its_kind(
    error: Exception, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("journey.cli.inputs.as_denoiser", strange)
    assert main(["record", "--model", str(model), "--out", str(tmp_path), "--quiet"]) == 1
    assert capsys.readouterr().err == f"journey: {type(error).__name__}: {error}\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--damping", "-1"], "damping must be a number >= 0, got -1.0"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
        (["--features", "nowhere"], "nowhere"),
        (["--data", "nowhere"], "dataset must be a folder of images, got nowhere"),
        (["--model", "/nowhere/at/all"], "model must be the path of a saved pipeline or a repo id"),
        (["--device", "nonsense"], "device must be one that torch can use, such as cpu or cuda, got nonsense"),
        (["--device", "cuda:9999"], "device must be one that torch can use, such as cpu or cuda, got cuda:9999"),
        (["--trajectory", "nowhere"], "trajectory was recorded already: leave out --num-inference-steps"),
        (["--top", "0"], "top must be at least 1, got 0"),
        (["--num-scored", "0"], "num_scored must be at least 1, got 0"),
        (["--completion-steps", "2"], "num_inference_steps is of completions' sampler, got 2 with completions=0"),
        (["--out", __file__], "test_main.py, which is a file"),
        (["--out", "/proc/nowhere"], "cannot write to this folder"),
    ],
)
def test_a_mistake_is_explained_in_one_line_and_exits_with_one(
    changes: list[str],
    message: str,
    features: Path,
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["score", "--model", str(model), "--data", str(images), "--features", str(features), "--quiet"]
    small = ["--out", str(tmp_path / "out"), "--num-inference-steps", "2", "--num-scored", "1", "--query-draws", "1"]
    assert main([*arguments, *small, *changes]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("journey: ")
    assert message in error


@pytest.mark.parametrize("changed", ["number", "pixels"])
def test_training_images_that_are_not_those_of_the_features_are_refused_before_the_work(
    changed: str, features: Path, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(images, tmp_path / "data")
    if changed == "number":
        (tmp_path / "data" / "3.png").unlink()
    else:
        Image.new("RGB", (10, 12)).save(tmp_path / "data" / "3.png")
    arguments = ["score", "--model", str(model), "--data", str(tmp_path / "data"), "--features", str(features)]
    assert main([*arguments, "--quiet", "--out", str(tmp_path / "out"), "--trajectory", "nowhere"]) == 1
    told = f"data must be the images that {features} was made from, got {tmp_path}"
    assert (told if changed == "number" else "has other pixels") in capsys.readouterr().err


def test_a_file_that_cannot_be_written_or_is_not_there_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, folder = str(tmp_path / "no" / "file"), str(tmp_path)
    influence = ["influence", "--model", "m", "--features", "f", "--trajectory", "t", "--ids", "1", "--csv"]
    for arguments, name in ((influence, "csv"), (["inspect", "--features", "f", "--json"], "json")):
        assert main([*arguments, nowhere]) == 1
        assert f"{name} must be a file in a folder that is there, got {nowhere}" in capsys.readouterr().err
        assert main([*arguments, folder]) == 1
        assert f"{name} must be a file, got {folder}, which is a folder" in capsys.readouterr().err
    assert main(["transitions", "--model", "m", "--trajectory", nowhere, "--classifier", "json:loads"]) == 1
    assert f"trajectory must be a folder or file that record or score wrote, got {nowhere}" in capsys.readouterr().err
    assert main(["record", "--model", "m", "--out", __file__]) == 1
    assert "which is a file" in capsys.readouterr().err


def test_score_samples_completions_in_as_many_steps_as_it_is_told(
    features: Path, model: Path, images: Path, tmp_path: Path
) -> None:
    common = ["--model", str(model), "--data", str(images), "--features", str(features), "--quiet"]
    numbers = ["--num-inference-steps", "4", "--query-draws", "1", "--steps", "500", "--completions", "1"]
    found = {}
    for steps in ("default", "2", "4"):
        told = [] if steps == "default" else ["--completion-steps", steps]
        assert main(["score", *common, *numbers, *told, "--out", str(tmp_path / steps)]) == 0
        found[steps] = Scores.load(tmp_path / steps / "scores.safetensors").values
    # The inverse of the Gram matrix multiplies the rounding of gradients.
    assert_same_but_for_rounding(found["default"], found["4"], 1e-4)
    assert (found["default"] - found["2"]).abs().max() > 1e-3 * found["2"].abs().max()


def test_a_rank_that_is_no_number_is_explained(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "first")
    arguments = ["featurize", "--model", str(model), "--data", str(images), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--quiet"]) == 1
    assert "environment variable RANK must be a number, got 'first'" in capsys.readouterr().err


def test_a_damaged_index_of_transitions_is_explained(tmp_path: Path) -> None:
    for text, message in (("[{}]", "it lacks query"), ('{"a": 1}', "it must be a list of transitions")):
        (tmp_path / "transitions.json").write_text(text)
        with pytest.raises(ValueError, match=rf"transitions\.json is damaged.*{message}"):
            load_transitions(tmp_path)


def test_a_batch_size_that_cannot_be_read_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["featurize", "--model", "m", "--data", "d", "--out", "o", "--batch-size", "many"])
    assert "argument --batch-size: must be a number of images or auto, got 'many'" in capsys.readouterr().err


def test_a_store_of_another_run_is_refused_and_kept(
    features: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(features)
    arguments = ["featurize", "--model", str(model), "--data", str(images), "--out", str(features), "--quiet"]
    assert main([*arguments, "--proj-dim", "96"]) == 1
    assert "proj_dim: 64 in the store, 96 now" in capsys.readouterr().err
    assert contents(features) == before


def test_demo_writes_the_report_and_repeats_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_digits_dataset()
    few = DigitsDataset(whole.images[:24], whole.labels[:24])
    monkeypatch.setattr(demo, "load_digits_dataset", lambda: few)
    monkeypatch.setattr(demo, "SAMPLER_STEPS", 10)
    monkeypatch.setattr(demo, "_COMPLETION_STEPS", 10)
    arguments = ["demo", "--train-steps", "3", "--num-images", "2", "--num-draws", "2", "--quiet"]
    for name in ("first", "second"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    for name in (
        "report.html",
        "report.png",
        "run.json",
        "scores.safetensors",
        "transition-1.safetensors",
        "features/manifest.json",
    ):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    assert len(result["same_class"]) == len(result["timesteps"])
    assert [len(decision["likelihood"]) >= 6 for decision in result["decisions"]] == [True, True]


def test_score_takes_an_interval_a_train_interval_a_region_and_completions(
    model: Path, images: Path, tmp_path: Path
) -> None:
    common = ["--model", str(model), "--data", str(images), "--quiet"]
    out = str(tmp_path / "features")
    assert main(["featurize", *common, "--out", out, "--proj-dim", "64", "--bins", "3"]) == 0
    manifest = json.loads((tmp_path / "features" / "manifest.json").read_text())
    assert (manifest["bins"], manifest["fingerprints"]["draws"]["num_draws"]) == (3, 2), "bins share few draws"
    arguments = ["score", *common, "--features", out]
    numbers = ["--num-inference-steps", "5", "--query-draws", "2", "--out", str(tmp_path / "out")]
    parts = ["--interval", "300", "900", "--train-interval", "0", "500", "--region", "1", "2", "5", "8"]
    assert main([*arguments, *numbers, *parts, "--completions", "2"]) == 0
    scores = Scores.load(tmp_path / "out" / "scores.safetensors")
    assert (scores.interval, scores.train_interval, list(scores.values.shape)) == ((300, 900), (0, 500), [1, 1, 6])
    assert scores.region is not None
    assert scores.region.sum().item() == 24
    assert main([*arguments, *numbers, "--steps", "600", "200"]) == 0
    assert Scores.load(tmp_path / "out" / "scores.safetensors").timesteps.tolist() == [600, 200]


def test_score_takes_a_mask_image(features: Path, model: Path, images: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 51).save(tmp_path / "mask.png")
    arguments = ["score", "--model", str(model), "--data", str(images), "--features", str(features), "--quiet"]
    numbers = ["--num-inference-steps", "2", "--query-draws", "1", "--out", str(tmp_path / "out")]
    assert main([*arguments, *numbers, "--region", str(tmp_path / "mask.png")]) == 0
    region = Scores.load(tmp_path / "out" / "scores.safetensors").region
    assert region is not None
    assert torch.equal(region, torch.full((1, 8, 8), 0.2))


@pytest.mark.parametrize(
    ("region", "message"),
    [(["1", "2", "3"], "region must be a box TOP LEFT BOTTOM RIGHT or the path"), (["nowhere.png"], "nowhere.png")],
)
def test_a_region_that_cannot_be_read_is_explained(
    region: list[str],
    message: str,
    features: Path,
    model: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["score", "--model", str(model), "--data", str(images), "--features", str(features), "--quiet"]
    numbers = ["--num-inference-steps", "1", "--query-draws", "1", "--out", str(tmp_path / "out")]
    assert main([*arguments, *numbers, "--region", *region]) == 1
    assert message in capsys.readouterr().err


def test_inspect_prints_a_table_and_writes_json(
    features: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", "--features", str(features), "--json", str(tmp_path / "health.json")]) == 0
    printed = capsys.readouterr().out
    assert "6 training images, 64 features each" in printed
    assert "effective rank" in printed
    assert json.loads((tmp_path / "health.json").read_text())["scores"] is None
    record((DDPMPipeline.from_pretrained(model).unet.eval(), DDPMScheduler()), num_inference_steps=2).save(
        tmp_path / "trajectory"
    )
    arguments = ["inspect", "--features", str(features), "--model", str(model), "--query-draws", "4", "--quiet"]
    assert main([*arguments, "--trajectory", str(tmp_path / "trajectory"), "--steps", "500"]) == 0
    assert "standard errors" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "model and trajectory must be given together" in capsys.readouterr().err


def test_features_and_fit_may_lie_on_an_object_store(model: Path, images: Path, features: Path, tmp_path: Path) -> None:
    common = ["--model", str(model), "--data", str(images), "--quiet"]
    there = ["--features", "memory://cli/features", "--fit", "memory://cli/fit"]
    measured = ["--num-draws", "2", "--shard-size", "4", "--proj-dim", "64"]
    assert main(["fit", *common, "--proj-dim", "64", "--out", "memory://cli/fit"]) == 0
    assert main(["featurize", *common, *measured, "--out", "memory://cli/features", "--fit", "memory://cli/fit"]) == 0
    store = FeatureStore.open("memory://cli/features")
    assert torch.equal(store.features("0"), FeatureStore.open(features).features("0"))
    assert (store.path / "command.txt").read_text().startswith("journey featurize ")
    assert main(["score", *common, *there, "--num-inference-steps", "2", "--out", str(tmp_path / "scored")]) == 0
    assert (tmp_path / "scored" / "scores.safetensors").exists()


def test_what_is_written_to_a_folder_alone_refuses_an_address(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["record", "--model", str(model), "--out", "memory://cli/recorded"])
    assert "argument --out: must be a folder of this machine, got memory://cli/recorded" in capsys.readouterr().err


def test_featurize_on_ray_gives_the_engine_a_model_that_travels(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from journey.integrations import ray

    given = []
    monkeypatch.setattr(ray, "featurize", lambda *arguments, **options: given.append((arguments, options)))
    arguments = ["featurize", "--model", str(model), "--data", str(images), "--out", str(tmp_path), "--quiet"]
    assert main([*arguments, "--engine", "ray", "--actors", "1", "4", "--num-gpus", "0.5"]) == 0
    ((make_model, data, out), options) = given[0]
    assert pickle.loads(pickle.dumps(make_model))().network.training is False
    assert (data, str(out)) == (str(images), str(tmp_path))
    assert (options["actors"], options["num_gpus"], options["row"]) == ((1, 4), 0.5, "int8")
    assert "shard_size" not in options
    assert main([*arguments, "--engine", "ray", "--actors", "1", "2", "3"]) == 1
    assert main([*arguments, "--actors", "2"]) == 1
    assert "--actors and --num-gpus are of actors on Ray: add --engine ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
    ],
)
def test_processes_are_told_their_share_by_torchrun_and_by_job_arrays(
    variables: dict[str, str],
    wanted: tuple[int, int],
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = importlib.import_module("journey.cli.featurize")
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(command, "featurize", lambda *_, **options: given.append(options))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["featurize", "--model", str(model), "--data", str(images), "--out", str(tmp_path), "--quiet"]) == 0
    assert (given[0]["rank"], given[0]["world_size"]) == wanted

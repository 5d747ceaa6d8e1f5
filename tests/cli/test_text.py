"""The command line on a saved text model: captions, prompts, recorded images, features, adapters, influence."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from adapters import add_adapter, as_peft, save, save_adapter, weights_of
from cases import assert_same_but_for_rounding
from families import PROMPTS, SIZE, Captioned, make_family
from PIL import Image
from report_cases import make_transition
from torch import Tensor

import journey
from journey.cli.inputs import load_denoiser
from journey.cli.main import _COMMANDS, _parser, main
from journey.cli.transitions import describe, load_transitions, save_transition
from journey.generation.trajectory import Trajectory
from journey.report.run import Run
from journey.report.view import to_picture
from journey.scores.scores import Scores

NAME = "Stable Diffusion"
FEW = ["--num-inference-steps", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_family(NAME).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three images; the last has a class and no caption of its own."""
    path, dataset = tmp_path_factory.mktemp("data"), Captioned(3)
    records = []
    for i in range(3):
        to_picture(dataset.images[i]).save(path / f"{i}.png")
        records.append({"file_name": f"{i}.png", "text": PROMPTS[i]})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.fixture(scope="module")
def features(model: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("run") / "features")
    arguments = ["featurize", "--model", model, "--data", data, "--out", out, "--bins", "2", "--proj-dim", "64"]
    assert main([*arguments, "--select", "*attn*", "conv_*", "--quiet"]) == 0
    return out


def is_bright(images: Tensor) -> Tensor:
    """The classifier that the commands are given: which completions are brighter than half of eight of them."""
    assert images.shape[1:] == (3, *SIZE)
    return images.mean((1, 2, 3)) > images.mean((1, 2, 3)).median()


NOT_A_FUNCTION = 3


def test_a_prompt_goes_from_recording_to_a_page_with_its_features(
    model: str, data: str, features: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, run = tmp_path / "generated", tmp_path / "run"
    prompts = ["--prompt", "a red apple", "two", "--negative-prompt", "ugly", "--guidance", "3", "--num-images", "2"]
    assert main(["record", "--model", model, *prompts, *FEW, "--out", str(out), "--quiet"]) == 0
    found = Trajectory.load(out / "trajectory.safetensors")
    wanted = journey.record(
        model,
        prompt=["a red apple", "two"],
        negative_prompt="ugly",
        guidance_scale=3.0,
        num_images=2,
        num_inference_steps=4,
        progress=False,
    )
    assert_same_but_for_rounding(found.images, wanted.images)
    assert found.prompts == ("a red apple", "a red apple", "two", "two")
    with Image.open(out / "image-3.png") as image:
        assert image.size == (SIZE[1], SIZE[0])

    capsys.readouterr()
    looked = ["--completions", "8", "--refine", "0", "--steps", "751", "1", "--query", "1", "--name", "is bright"]
    named = ["--classifier", f"{__name__}:is_bright", "--trajectory", str(out), "--model", model, "--quiet"]
    for _ in range(2):  # the second takes the place of the first
        assert main(["transitions", *named, *looked]) == 0
    printed = capsys.readouterr().out
    assert '"is bright" among 8 completions from each step' in printed
    assert "No transition" in printed
    assert f"Kept in {out}" in printed
    assert len(json.loads((out / "transitions.json").read_text())) == 1

    common = ["--model", model, "--features", features, "--select", "*attn*", "conv_*", "--quiet"]
    arguments = ["score", *common, "--data", data, "--trajectory", str(out), "--query-draws", "2", "--out", str(run)]
    assert main([*arguments, "--steps", "501", "1"]) == 0
    kept = Run.load(run)
    assert list(kept.transitions) == [(1, "is bright")]
    assert torch.equal(kept.trajectory.images, found.images)
    page = (run / "report.html").read_text()
    assert "is bright" in page
    assert "two green pears" in page
    assert Scores.load(run / "scores.safetensors").values.shape == (4, 2, 3)

    ids = [kept.scores.train_ids[i] for i in (0, 2)]
    table = ["--ids", *ids, "--query", "1", "--query-draws", "2", "--csv", str(tmp_path / "table.csv")]
    assert main(["influence", *common, "--trajectory", str(run), "--steps", "501", "1", *table]) == 0
    rows = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["trained at", "0-499", "500-999"]
    columns = torch.tensor([[float(cell) for cell in row[1:]] for row in rows[1:]]).sum(0)
    scores = kept.scores.values[1, :, [0, 2]].sum(1)
    torch.testing.assert_close(columns, scores, rtol=0.02, atol=0)  # three digits are written

    assert main([*arguments, "--prompt", "two", "--guidance", "2"]) == 1
    assert "leave out --prompt, --guidance, or record anew" in capsys.readouterr().err
    assert main(["inspect", "--features", features]) == 0
    assert "layers, from 1 of the images" in capsys.readouterr().out


def test_an_adapter_is_loaded_and_alone_is_measured(model: str, data: str, tmp_path: Path) -> None:
    pipeline = make_family(NAME)
    add_adapter(pipeline.unet)
    save_adapter(pipeline, tmp_path / "lora")
    common = ["--model", model, "--lora", str(tmp_path / "lora"), "--data", data, "--quiet"]
    assert main(["featurize", *common, "--out", str(tmp_path / "f"), "--num-draws", "2", "--proj-dim", "64"]) == 0
    stored = json.loads((tmp_path / "f" / "manifest.json").read_text())
    assert stored["fingerprints"]["parameters"]["count"] == sum(
        p.numel() for name, p in pipeline.unet.named_parameters() if ".lora_" in name
    )
    asked = ["--prompt", "two", *FEW, "--num-scored", "1", "--query-draws", "2", "--features", str(tmp_path / "f")]
    assert main(["score", *common, *asked, "--out", str(tmp_path / "run")]) == 0
    assert Scores.load(tmp_path / "run" / "scores.safetensors").values.shape == (1, 1, 3)


def test_an_adapter_for_a_model_that_takes_none_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_family("DiT").save_pretrained(tmp_path / "model")
    arguments = ["record", "--model", str(tmp_path / "model"), "--lora", "nowhere", "--class-label", "1", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert (
        "lora needs a pipeline with load_lora_weights, such as StableDiffusionPipeline, got DiTPipeline"
        in capsys.readouterr().err
    )


def test_an_adapter_with_a_dropout_is_measured_in_eval_mode(model: str, data: str, tmp_path: Path) -> None:
    pipeline = make_family(NAME)
    add_adapter(pipeline.unet)
    path = as_peft(pipeline, tmp_path / "lora")  # its config says lora_dropout=0.5
    options = _parser().parse_args(["record", "--model", model, "--lora", str(path), "--out", str(tmp_path)])
    loaded = load_denoiser(options).network
    assert any(isinstance(module, torch.nn.Dropout) and module.p == 0.5 for module in loaded.modules())
    assert not any(module.training for module in loaded.modules())


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_loaded_in_the_dtype_in_which_it_was_saved_or_that_is_asked_for(
    saved: torch.dtype, tmp_path: Path
) -> None:
    pipeline = make_family(NAME)
    pipeline.to(saved)
    pipeline.vae.float()  # as people save it who fear overflow
    pipeline.save_pretrained(tmp_path / "plain")
    pipeline.save_pretrained(tmp_path / "variant", variant="fp16")
    parse = _parser().parse_args
    for place, more in (("plain", []), ("variant", ["--variant", "fp16"])):
        arguments = ["record", "--model", str(tmp_path / place), *more, "--out", str(tmp_path)]
        found = load_denoiser(parse(arguments))
        assert (found.network.dtype, found.frozen["vae"].dtype) == (saved, torch.float32)
        assert found.frozen["text_encoder"].dtype == saved
        found = load_denoiser(parse([*arguments, "--dtype", "bfloat16"]))
        assert {part.dtype for part in (found.network, *found.frozen.values())} == {torch.bfloat16}
    assert main(["record", "--model", str(tmp_path / "variant"), "--prompt", "two", "--out", str(tmp_path)]) == 1


def test_an_adapter_that_is_not_read_is_refused_and_nothing_else_is_measured(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = make_family(NAME)
    add_adapter(pipeline.unet)
    tensors = {f"prior.{name}": tensor.contiguous() for name, tensor in weights_of(pipeline).items()}
    path = save(tensors, tmp_path / "mine.safetensors")
    arguments = ["featurize", "--model", model, "--lora", str(path), "--data", data, "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "f")]) == 1
    told = capsys.readouterr().err
    assert "mine.safetensors was not read as an adapter of StableDiffusionPipeline: it begins with prior." in told
    assert not (tmp_path / "f").exists()


def test_labels_are_captions_else_classes_else_paths(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    told = [{"file_name": "a.png", "text": ["one", "other"], "label": 3}, {"file_name": "b.png", "label": 4}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, told)))
    assert journey.ImageFolder(tmp_path).labels == ["one", "class 4, b.png", "c.png"]


def test_a_class_is_recorded_by_its_label(tmp_path: Path) -> None:
    make_family("DiT").save_pretrained(tmp_path / "model")
    arguments = ["record", "--model", str(tmp_path / "model"), "--class-label", "7", "3", *FEW, "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert Trajectory.load(tmp_path / "out" / "trajectory.safetensors").prompts == ("class 7", "class 3")


def test_a_found_transition_is_told_with_its_bounds_and_the_command_that_attributes_it(tmp_path: Path) -> None:
    found = make_transition()
    lines = describe("is round", found).splitlines()
    assert lines[0] == '"is round" among 40 completions from each step:'
    assert lines[2].split() == ["900", "10%", *f"{found.band[0][0]:.0%} to {found.band[1][0]:.0%}".split()]
    assert lines[-2] == (
        "Decided in timesteps 301 to 700 (bounds 301 to 301 and 700 to 700), half of it at 475 (500 to 500)."
    )
    assert "--interval 301 701" in lines[-1]
    for name in ("is round", "is red", "is round"):
        save_transition(tmp_path, 0, name, found)
    assert sorted(load_transitions(tmp_path)) == [(0, "is red"), (0, "is round")]
    index = tmp_path / "transitions.json"
    index.write_text(index.read_text().replace("feature-1", "../feature-1"))
    with pytest.raises(ValueError, match="must name files of the same folder"):
        load_transitions(tmp_path)


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        ("is_bright", "classifier must be MODULE:FUNCTION"),
        (f"{__name__}:is_dark", "classifier must be a function of"),
        (f"{__name__}:NOT_A_FUNCTION", "'NOT_A_FUNCTION' that is none"),
        ("no_such_module:is_bright", "No module named 'no_such_module'"),
    ],
)
def test_a_classifier_that_is_none_is_explained(
    classifier: str, message: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--classifier", classifier, "--trajectory", str(tmp_path), "--model", model, "--quiet"]
    assert main(["transitions", *named]) == 1
    assert message in capsys.readouterr().err


def test_every_command_has_examples_that_its_own_parser_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for command in _COMMANDS:
        for line in command.EXAMPLES.strip().splitlines():
            words = shlex.split(line)
            _parser().parse_args(words[words.index("journey") + 1 :])
        with pytest.raises(SystemExit):
            main([command.__name__.rpartition(".")[2], "--help"])
        assert command.EXAMPLES.strip().splitlines()[0] in capsys.readouterr().out


def test_the_documented_commands_and_options_exist() -> None:
    text = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    # Whole commands, not a command's name in a sentence.
    lines = [line for line in re.findall(r"`journey ([^`]+)`", text) if "COMMAND" not in line and " --" in line]
    assert len(lines) >= 7
    parsed = [_parser().parse_args(shlex.split(line)) for line in lines]
    scoring = next(line for line in lines if line.startswith("score"))
    for more in re.findall(r"`(?:… |\.\.\. )?(--(?:region|interval|train-interval|completions) [^`]+)`", text):
        parsed.append(_parser().parse_args(shlex.split(f"{scoring} {more}")))
    assert len(parsed) >= len(lines) + 4

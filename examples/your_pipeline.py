"""Your own pipeline and a folder of images: which of them are behind each image that the pipeline generates?

Prints the strongest proponents by file name and writes a page.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMPipeline
from PIL import Image

import journey
from journey.demo.digits import DigitsDataset, load_digits_dataset, train


def make_folder(folder: Path, digits: DigitsDataset) -> None:
    """Write digits as files that are named by what they show. Your images are files already."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(digits.images):
        pixels = ((image[0] + 1) * 127.5).round().to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i:04d}-shows-a-{digits.labels[i]}.png")


def make_pipeline(folder: Path, digits: DigitsDataset, steps: int) -> None:
    """Train a small DDPM on the digits and save it. Your pipeline has been trained already."""
    network, scheduler = train(digits, steps=steps)
    DDPMPipeline(network, DDIMScheduler.from_config(scheduler.config)).save_pretrained(folder)


def main() -> None:
    """Featurize, record, score, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/your_pipeline"), help="folder of everything")
    parser.add_argument("--images", type=int, default=500, help="training images")
    parser.add_argument("--train-steps", type=int, default=1200, help="of the pipeline that stands in for yours")
    options = parser.parse_args()
    whole, pipeline, folder = load_digits_dataset(), options.out / "pipeline", options.out / "images"
    digits = DigitsDataset(whole.images[: options.images], whole.labels[: options.images])
    make_folder(folder, digits)
    make_pipeline(pipeline, digits, options.train_steps)

    dataset = journey.ImageFolder(folder, channels=1)  # in colour: size=(512, 512)
    features = journey.featurize(pipeline, dataset, options.out / "features")  # once; a killed run continues
    trajectory = journey.record(pipeline, seed=0, num_images=4, num_inference_steps=25)
    scores = journey.score(features, trajectory, steps=trajectory.timesteps[2::4].tolist())

    for image, ranked in enumerate(scores.top(k=3).proponents.ids.tolist()):
        print(f"generated image {image}")
        for step, ids in zip(scores.timesteps.tolist(), ranked, strict=True):
            print(f"  step {step:3d}: {', '.join(ids)}")
    page = journey.write_report(options.out / "report.html", trajectory, scores, dataset, labels=dataset.labels)
    print(f"with a slider over the steps: {page}")


if __name__ == "__main__":
    main()

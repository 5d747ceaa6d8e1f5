"""One generated image, followed through every step: when is it decided, and which training images steer it there?

Prints a line for each step and writes the run, a page and a picture.
"""

import argparse
from pathlib import Path

from diffusers import DDIMScheduler
from torch import Tensor

import journey
from journey.demo.digits import DigitsDataset, knn_labels, load_digits_dataset, train


def main() -> None:
    """Train, featurize, record, score every step, find when the digit is decided, show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/every_step"), help="folder of everything")
    parser.add_argument("--images", type=int, default=500, help="training images")
    parser.add_argument("--train-steps", type=int, default=1200, help="of the model")
    parser.add_argument("--steps", type=int, default=50, help="of the generation")
    parser.add_argument("--completions", type=int, default=24, help="images that are completed from a step")
    options = parser.parse_args()
    whole = load_digits_dataset()
    dataset = DigitsDataset(whole.images[: options.images], whole.labels[: options.images])
    network, scheduler = train(dataset, steps=options.train_steps)
    model = (network, DDIMScheduler.from_config(scheduler.config))  # the deterministic sampler

    features = journey.featurize(model, dataset, options.out / "features")
    trajectory = journey.record(model, seed=0, num_inference_steps=options.steps)
    scores = journey.score(features, trajectory)  # [1 image, every step, every training image]
    digit = int(knn_labels(trajectory.images, dataset))

    def shows_it(images: Tensor) -> Tensor:
        return knn_labels(images, dataset) == digit

    decided = journey.transitions(model, trajectory, shows_it, completions=options.completions)

    proponents, opponents = scores.top(k=5)
    for row, step in enumerate(scores.timesteps.tolist()):
        looks_like = int(knn_labels(trajectory.x0_hat[:, row], dataset))
        towards, away = (dataset.labels[ranked.ids[0, row]].tolist() for ranked in (proponents, opponents))
        print(f"step {step:3d}: looks like a {looks_like}, steered towards it by {towards}, away from it by {away}")
    when = "between {1} and {0}".format(*decided.interval) if decided.found else "at no step"
    print(f"that it becomes a {digit} is decided {when}")

    names = [f"a {label}" for label in dataset.labels.tolist()]
    told = {"query_captions": [f"looks like a {digit}"], "transitions": {(0, f"a {digit}"): decided}}
    run = journey.Run(trajectory, scores, dataset, labels=names, **told)
    run.save(options.out)  # Run.load reads it without the model and the images
    run.write_png(options.out / "report.png")
    print(f"with a slider over the steps: {run.write_report(options.out / 'report.html')}")


if __name__ == "__main__":
    main()

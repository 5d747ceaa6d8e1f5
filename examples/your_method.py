"""Your own attribution method beside published ones: which of them predicts best what retraining does?

Retrains on random halves of some digits and prints every method's LDS, in minutes on two cores.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import journey
from journey.demo.digits import build_unet, load_digits_dataset
from journey.demo.fit import make_scheduler
from journey.evaluate.lds import lds
from journey.evaluate.responses import measure_responses
from journey.evaluate.retrain import Run, retrain
from journey.evaluate.subsets import random_subsets
from journey.evaluate.training import UNetTraining
from journey.methods import PRESETS


def your_method(network: nn.Module, images: Tensor, queries: Tensor) -> Tensor:
    """Score by the cosine of what the middle of the network makes of two images. [num_queries, num_train]"""
    seen: list[Tensor] = []
    with torch.no_grad(), network.mid_block.register_forward_hook(lambda _, given, out: seen.append(out.flatten(1))):
        network(torch.cat([images, queries]), torch.tensor(200))
    hidden = F.normalize(seen[0] - seen[0].mean(0), dim=1)
    return hidden[len(images) :] @ hidden[: len(images)].T


def main() -> None:
    """Retrain on random halves, score by every method, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="out/your_method", help="folder of the retrained models")
    parser.add_argument("--images", type=int, default=128, help="training images")
    parser.add_argument("--halves", type=int, default=24, help="random halves of them, each trained on twice")
    parser.add_argument("--train-steps", type=int, default=300, help="of each training")
    options = parser.parse_args()
    digits, schedule = load_digits_dataset(8).images, make_scheduler()
    images, queries = digits[: options.images], digits[-16:]
    train = UNetTraining((build_unet(8).eval(), schedule), images, steps=options.train_steps, batch_size=32)
    halves = random_subsets(len(images), options.halves)
    runs = [Run(halves.indices(j), seed) for j in range(len(halves)) for seed in (0, 1)]
    weights = retrain(train, runs, options.out, processes=2)  # a killed run continues
    model = (train(range(len(images)), seed=0), schedule)
    losses = measure_responses(model, weights, queries, draws=journey.StratifiedDraws(64))
    scores = {"your method": your_method(model[0], images, queries)}
    for name in ("trak", "tracin"):  # trak was published with a dense projection, which takes minutes
        method = PRESETS[name]().change(projector=journey.CountSketch())
        scores[name] = method.run(model, images, queries).to_quanda()
    features = journey.featurize(model, images, f"{options.out}/features-{len(images)}-{options.train_steps}")
    scores["default"] = journey.score(features, images=queries).strengths().to_quanda()
    table = lds(scores, losses.view(len(halves), 2, len(queries)), halves)
    for name, found in [*((name, row.lds) for name, row in table.rows.items()), ("retraining", table.ceiling)]:
        print(f"{name:16} LDS {found}")


if __name__ == "__main__":
    main()

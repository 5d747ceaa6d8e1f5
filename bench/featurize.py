"""A whole featurizing step of a small UNet, from noised images to features, beside a plain training step."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from bench.case import PROJ_DIM, SEED, Case, Context
from bench.harness import Call, Effort, Goal, Ratio, Row, Timings, checked, interleave, relative_error
from bench.per_sample import NaiveHooks, vmap_gradients
from journey import CountSketch, Denoiser, Featurizer, StratifiedDraws, TrainingLoss, reference
from journey.keys import derive_key

# Float32 forward and backward through some forty layers; a parameter that is left out or wrong is off by far more.
TOLERANCE = 1e-4

GOAL_COST = 1.35

STEP = "a training step"


class Workload:
    """A batch of images with their draws, in front of an untrained UNet2DModel of 4.4M parameters.

    Args:
        num_samples: Images.
        num_draws: Draws of each; all go through the network as one batch.
    """

    def __init__(self, num_samples: int, num_draws: int) -> None:
        """Make the network and the batch."""
        torch.manual_seed(SEED)
        self.network = _small_unet()
        self.projector = CountSketch(PROJ_DIM)
        denoiser = Denoiser(self.network, DDPMScheduler())
        self.featurizer = Featurizer(denoiser, measurement=TrainingLoss(), projector=self.projector)
        self.num_draws = num_draws
        self.images = torch.rand(num_samples, 3, 32, 32) * 2 - 1
        draws = StratifiedDraws(num_draws=num_draws)
        ids = range(num_samples)
        self.timesteps = draws.timesteps(ids, denoiser.num_train_timesteps)
        self.noise = draws.noise(ids, (3, 32, 32), torch.device("cpu"))
        self.times = self.timesteps.flatten()
        self.target = self.noise.flatten(0, 2)
        self.x_t = denoiser.add_noise(self.images.repeat_interleave(num_draws, 0), self.target, self.times)

    def features(self) -> Tensor:
        """Featurize the batch, giving [num_samples, proj_dim]."""
        return self.featurizer.features(self.images, self.timesteps, self.noise)[0].squeeze(1)

    def loss(self, x_t: Tensor) -> Tensor:
        """Return the training loss of the whole batch."""
        prediction: Tensor = self.network(x_t, self.times).sample
        return (self.target - prediction).square().mean()

    def training_step(self) -> None:
        """Run forward and backward with all weight gradients, without an optimiser."""
        self.network.zero_grad(set_to_none=True)
        self.loss(self.x_t).backward()

    @torch.no_grad()
    def forward(self) -> None:
        """Run the network."""
        self.loss(self.x_t)

    def input_gradients(self) -> None:
        """Run forward and the part of backward that every gradient needs: no weight gradient."""
        for p in self.network.parameters():
            p.requires_grad_(False)
        self.loss(self.x_t.clone().requires_grad_()).backward()
        for p in self.network.parameters():
            p.requires_grad_(True)

    def expected_gradients(self, sample: int) -> dict[str, Tensor]:
        """Return a sample's gradient of its mean loss in float64 by plain autograd, by parameter."""
        network = deepcopy(self.network).double()
        rows = slice(sample * self.num_draws, (sample + 1) * self.num_draws)
        prediction = network(self.x_t[rows].double(), self.times[rows]).sample
        (self.target[rows] - prediction).square().mean().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    def sketched(self, grads: dict[str, Tensor]) -> Tensor:
        """Return the reference sketch of one sample's gradients, float64 [1, proj_dim]."""
        features = torch.zeros(1, PROJ_DIM, dtype=torch.float64)
        for name, grad in grads.items():
            matrix = grad.flatten(1) if grad.dim() > 1 else grad[None]
            features += reference.sketch(matrix[None], PROJ_DIM, derive_key(self.projector.seed, "sketch", name))
        return features


def _small_unet() -> nn.Module:
    network: Any = UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    evaluated: nn.Module = cast(nn.Module, network).eval()
    return evaluated


def cases(context: Context) -> Iterator[Case]:
    """Yield the cases: eight samples with one draw, four samples with four."""
    if context.device.type == "cpu":
        yield Case("featurize", _sizes(8, 1), lambda row: _one_draw(row, context))
        yield Case("featurize", _sizes(4, 4), lambda row: _several_draws(row, context))


def _sizes(num_samples: int, num_draws: int) -> str:
    return f"UNet2DModel 4.4M at 32x32 batch={num_samples} draws={num_draws} proj_dim={PROJ_DIM} float32"


def _one_draw(row: Row, context: Context) -> list[Row]:
    work = Workload(8, 1)
    grads = work.expected_gradients(0)
    row.error = checked(relative_error(work.features()[:1], work.sketched(grads)), TOLERANCE)

    vmapped = vmap_gradients(work.network)
    calls: dict[str, Call] = {
        STEP: work.training_step,
        "featurize": work.features,
        "vmap(grad), unprojected": lambda: vmapped(work.x_t, work.times, work.target),
        "forward": work.forward,
        "forward and input gradients": work.input_gradients,
    }
    errors = {"vmap(grad), unprojected": _peer_error(vmapped(work.x_t[:1], work.times[:1], work.target[:1]), grads)}
    if not context.quick:
        hooks = NaiveHooks(work.network)
        calls["naive hooks, unprojected"] = lambda: hooks.gradients(lambda: work.loss(work.x_t), len(work.x_t))
        found = hooks.gradients(lambda: work.loss(work.x_t), len(work.x_t))
        errors["naive hooks, unprojected"] = _peer_error(found, {name: grads[name] for name in found})
    timings = _interleave(calls, context)
    _fill(row, timings, list(errors), errors)
    peers = [_peer_row(row, timings, name, error) for name, error in errors.items()]
    return [*peers, _breakdown(row, timings)]


def _several_draws(row: Row, context: Context) -> None:
    work = Workload(4, 4)
    row.error = checked(relative_error(work.features()[:1], work.sketched(work.expected_gradients(0))), TOLERANCE)
    _fill(row, _interleave({STEP: work.training_step, "featurize": work.features}, context), [], {})


def _interleave(calls: dict[str, Call], context: Context) -> Timings:
    # A round takes seconds: the fewest rounds decide.
    effort = Effort(6.0, (4, 10)) if context.quick else Effort(20.0, (20, 30))
    # Featurizing follows featurizing, and a training step a training step.
    return interleave(calls, context.device, budget=effort.budget, rounds=effort.rounds, in_series=True)


def _fill(row: Row, timings: Timings, peers: list[str], errors: dict[str, float]) -> None:
    """Enter the cost in training steps of the same rows, and the speedups over the peers."""
    row.seconds, row.repetitions = timings.of("featurize"), timings.repetitions
    cost = timings.ratio("featurize", STEP)
    row.ratios.append(Ratio(STEP, cost, "cost"))
    row.ratios += [Ratio(name, timings.ratio(name, "featurize"), error=errors[name]) for name in peers]
    row.goal = Goal("cost in training steps", "<=", GOAL_COST, cost.median)


def _peer_row(row: Row, timings: Timings, name: str, error: float) -> Row:
    ratio = Ratio(STEP, timings.ratio(name, STEP), "cost")
    seconds = timings.of(name)
    return Row(f"  {name}", row.sizes, row.device, seconds, timings.repetitions, ratios=[ratio], error=error)


def _breakdown(row: Row, timings: Timings) -> Row:
    """Say where the time goes, in shares of the training step's time."""
    forward, both, ours = (
        timings.ratio(name, STEP).median for name in ("forward", "forward and input gradients", "featurize")
    )
    note = (
        f"of a training step's time: forward {forward:.2f}, input gradients {both - forward:.2f}, "
        f"weight gradients and projection {ours - both:.2f} (weight gradients of the training step: {1 - both:.2f})"
    )
    seconds = timings.of(STEP)
    return Row("  training step, breakdown", row.sizes, row.device, seconds, timings.repetitions, note=note)


def _peer_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative error of a peer's gradient of the first sample, over all parameters."""
    ours = torch.cat([found[name][0].flatten() for name in expected])
    return relative_error(ours, torch.cat([grad.flatten() for grad in expected.values()]))

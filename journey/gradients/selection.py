"""The choice of which of a network's trainable parameters are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn

# A function of the name, or patterns such as "*.attn*.to_k.*" of which one must match.
Selection = Callable[[str], bool] | str | Sequence[str]


def selector(select: Selection | None, network: nn.Module) -> Callable[[str], bool] | None:
    """The selection as a function of the name."""
    if select is None or callable(select):
        return select
    if not isinstance(select, str) and not (isinstance(select, Sequence) and all(isinstance(x, str) for x in select)):
        raise TypeError(f'select must be a function of names, or patterns such as "*.attn*", got {select!r:.60}')
    patterns = [select] if isinstance(select, str) else list(select)
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    unused = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if unused or not patterns:
        raise ValueError(
            f"select must be patterns of trainable parameters, got {', '.join(map(repr, unused)) or 'none'} that match "
            f"none of {len(names)}, such as {', '.join(names[:3])}"
        )
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)

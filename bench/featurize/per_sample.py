"""Per-sample gradients as they are usually computed, whole and unprojected: the peers of the featurizing step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.peers import AbsentPeerError


def vmap_gradients(network: nn.Module, num_draws: int) -> Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Return ``(x_t, timesteps, target) -> gradients by parameter, [num_samples, *shape]`` by torch.func.

    Each is the gradient of the mean loss of ``num_draws`` consecutive rows.
    """
    parameters = {name: p.detach() for name, p in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], x_t: Tensor, timesteps: Tensor, target: Tensor) -> Tensor:
        prediction: Tensor = functional_call(network, parameters, (x_t, timesteps)).sample
        return (target - prediction).square().mean()

    per_sample: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0, 0))

    def gradients(x_t: Tensor, timesteps: Tensor, target: Tensor) -> dict[str, Tensor]:
        # vmap has no rule for fused attention on the CPU, loops over the rows and warns. That is still the faster way:
        # with the math form of attention, which vmap knows, the whole takes a quarter longer.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            return per_sample(parameters, *(rows.unflatten(0, (-1, num_draws)) for rows in (x_t, timesteps, target)))

    return gradients


class NaiveHooks:
    """The usual hook engine: autograd runs as always, and hooks unfold and multiply each layer's pair a second time.

    Linear, Conv2d and GroupNorm, one draw per sample.

    Args:
        network: What to differentiate.
    """

    def __init__(self, network: nn.Module) -> None:
        """Find the layers."""
        self._network = network
        self._modules: dict[nn.Module, str] = {
            m: name for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.GroupNorm)
        }

    def gradients(self, loss: Callable[[], Tensor], num_rows: int) -> dict[str, Tensor]:
        """Run a training step and collect each row's gradient of its own mean loss.

        Args:
            loss: Mean over the batch.
            num_rows: Rows of the batch.

        Returns:
            Gradients by parameter. [num_rows, *shape]
        """
        found: dict[str, Tensor] = {}

        def capture(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x = args[0].detach()
            output.register_hook(lambda g: _collect(found, self._modules[module], module, x, g * num_rows))

        handles = [module.register_forward_hook(capture) for module in self._modules]
        try:
            self._network.zero_grad(set_to_none=True)
            loss().backward()
        finally:
            for handle in handles:
                handle.remove()
        return found


@torch.no_grad()
def _collect(found: dict[str, Tensor], name: str, module: nn.Module, x: Tensor, g: Tensor) -> None:
    num_rows = len(g)
    if isinstance(module, nn.GroupNorm):
        normalized = F.group_norm(x, module.num_groups, None, None, module.eps)
        weight = (normalized * g).flatten(2).sum(2)
        bias = g.flatten(2).sum(2)
    elif isinstance(module, nn.Conv2d):
        columns = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        weight = torch.bmm(g.flatten(2), columns.transpose(1, 2)).view(num_rows, *module.weight.shape)
        bias = g.flatten(2).sum(2)
    else:
        a, g = x.reshape(num_rows, -1, x.shape[-1]), g.reshape(num_rows, -1, g.shape[-1])
        weight, bias = torch.bmm(g.transpose(1, 2), a), g.sum(1)
    for parameter, grads in (("weight", weight), ("bias", bias)):
        if getattr(module, parameter) is not None:
            key = f"{name}.{parameter}"
            found[key] = found[key] + grads if key in found else grads


class DattriCapture:
    """The hooks of dattri-llm, which form each row's whole gradient as the layer is reached.

    Args:
        network: What to differentiate; one draw per sample.

    Raises:
        AbsentPeerError: If the package is absent.
    """

    def __init__(self, network: nn.Module) -> None:
        """Make the manager of its hooks."""
        try:
            from dattri_llm import HookManager, HookManagerConfig
        except ImportError as error:
            raise AbsentPeerError(f"dattri-llm absent: {error}") from error
        self._network = network
        config = HookManagerConfig(capture_style="materialized")
        self._manager = HookManager(network, config)
        self._manager.remove()

    def gradients(self, loss: Callable[[], Tensor], num_rows: int) -> dict[str, Tensor]:
        """Run a training step and collect each row's gradient of its own mean loss.

        Args:
            loss: Mean over the batch.
            num_rows: Rows of the batch.

        Returns:
            Gradients of Linear and Conv2d weights by parameter, views of what was captured. [num_rows, *shape]
        """
        self._network.zero_grad(set_to_none=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            with self._manager.collect(deregister_on_exit=True):
                (loss() * num_rows).backward()
                captured: dict[str, Any] = dict(self._manager.get_gradient().data)
        found = {}
        for layer, grads in captured.items():
            module = self._network.get_submodule(layer)
            if isinstance(module, nn.Linear | nn.Conv2d):
                matrix = grads.view(num_rows, module.weight.shape[0], -1)[..., : module.weight[0].numel()]
                found[f"{layer}.weight"] = matrix.unflatten(2, module.weight.shape[1:])
        return found

"""What the host does in one pass besides torch's forward and backward: ``python -m bench.featurize.host``.

On a GPU the kernels of small layers end sooner than Python has prepared the next, so that Python is the limit. Here
networks keep all their layers and lose nearly all their channels and pixels, our kernels return at once, and a pass is
timed beside the same forward and backward with nothing measured. The difference is our Python and the torch operations
that the rules ask for. CPU time of the one thread; the two take turns, and medians are compared.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.case import PROJ_DIM
from bench.featurize.workload import NETWORKS
from journey.gradients.engine import GradientEngine
from journey.ops import cpu
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

IMAGES, DRAWS, ROUNDS = 2, 2, 40
GOALS = {"CIFAR-10 UNet": (6.0, 250), "Stable Diffusion 1.x UNet": (15.0, None)}  # milliseconds, launches


class Pass(NamedTuple):
    """A network of few channels, and its values of a slice of rows."""

    network: nn.Module
    values: Callable[[slice], Tensor]


class NoKernels:
    """Counts calls of the compiled kernels instead of making them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, op: str) -> Callable[..., None]:
        """Return what stands for a kernel."""

        def call(args: dict[str, Any], num_threads: int) -> None:
            self.calls[op] += 1

        return call


def main() -> int:
    """Print what a pass costs for each network."""
    torch.set_num_threads(1)
    for name, make in (("CIFAR-10 UNet", cifar10), ("Stable Diffusion 1.x UNet", stable_diffusion)):
        work = make()
        milliseconds, goal = measure(name, work), GOALS[name]
        met = "met" if milliseconds <= goal[0] else "NOT MET"
        print(f"  goal <= {goal[0]:g} ms of our own Python: {milliseconds:.1f} {met}", flush=True)
    return 0


def cifar10() -> Pass:
    """Return the UNet of google/ddpm-cifar10-32, an eighth as wide, for images of 8x8."""
    torch.manual_seed(0)
    untyped: Any = UNet2DModel
    fields = NETWORKS["35.7M"] | {"block_out_channels": (32, 32, 32, 32)}
    network = untyped(sample_size=8, **fields).eval()
    x, times = torch.randn(IMAGES * DRAWS, 3, 8, 8), torch.arange(IMAGES * DRAWS, dtype=torch.int64)
    return Pass(network, lambda rows: network(x[rows], times[rows]).sample.square().mean((1, 2, 3)))


def stable_diffusion() -> Pass:
    """Return the UNet of Stable Diffusion 1.x, a tenth as wide, for latents of 8x8."""
    torch.manual_seed(0)
    untyped: Any = UNet2DConditionModel
    network = untyped(
        sample_size=8, block_out_channels=(32, 64, 64, 64), cross_attention_dim=32, attention_head_dim=8
    ).eval()
    x, times = torch.randn(IMAGES * DRAWS, 4, 8, 8), torch.arange(IMAGES * DRAWS, dtype=torch.int64)
    text = torch.randn(IMAGES * DRAWS, 4, 32)
    return Pass(network, lambda rows: network(x[rows], times[rows], text[rows]).sample.square().mean((1, 2, 3)))


def measure(name: str, work: Pass) -> float:
    """Print what one pass of the default costs the host, and return the milliseconds that are our own."""
    engine = GradientEngine(work.network)
    projector = Scaled(CountSketch(PROJ_DIM), dict.fromkeys(engine.slots, 1.5))
    features = torch.zeros(IMAGES, PROJ_DIM)
    inputs = [p for p in work.network.parameters() if p.requires_grad][:1]

    def featurize() -> None:
        engine.add_gradients_(features, work.values, num_rows=IMAGES * DRAWS, projector=projector)

    def bare() -> None:
        # What autograd does for every gradient: the first layer's weight alone requires one.
        for p in work.network.parameters():
            p.requires_grad_(False)
        inputs[0].requires_grad_(True)
        work.values(slice(0, IMAGES * DRAWS)).sum().backward()
        for p in work.network.parameters():
            p.requires_grad_(True)
        inputs[0].grad = None

    with no_kernels() as kernels:
        featurize()
        kernels.calls.clear()
        featurize()
        launches = kernels.calls.copy()
        times = interleaved({"featurize": featurize, "bare": bare})
        more = torch_operations(featurize)
        more.subtract(torch_operations(bare))
    beyond = times["featurize"] - times["bare"]
    print(
        f"{name}: {len(engine.slots)} parameters in {len(list(work.network.modules()))} modules\n"
        f"  a pass takes {times['featurize']:.1f} ms, forward and backward alone {times['bare']:.1f}: "
        f"{beyond:.1f} ms beyond\n"
        f"  {sum(launches.values())} native calls {dict(launches)}, {sum(more.values())} torch operations: "
        + ", ".join(f"{count} {op}" for op, count in more.most_common() if count > 1),
        flush=True,
    )
    return beyond


@contextmanager
def no_kernels():  # type: ignore[no-untyped-def]
    """Let calls of kernels end at once."""
    native, kernels = cpu._native, NoKernels()

    class Module:
        cpu = kernels

    cpu._native = Module  # type: ignore[assignment]
    try:
        yield kernels
    finally:
        cpu._native = native


def torch_operations(run: Callable[[], None]) -> Counter[str]:
    """Return how often a call asks torch for each operation, without those that others ask for."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = [event for event in profiler.events() or [] if event.name.startswith("aten::")]
    return Counter(e.name[6:] for e in events if not (e.cpu_parent and e.cpu_parent.name.startswith("aten::")))


def interleaved(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return the median milliseconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, run in calls.items():
            begin = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - begin)
    return {name: 1e3 * statistics.median(found[2:]) for name, found in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())

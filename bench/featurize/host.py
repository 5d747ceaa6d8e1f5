"""What the host does in one pass besides torch's forward and backward: ``python -m bench.featurize.host``.

On a GPU the kernels of small layers end sooner than Python has prepared the next, so that Python is the limit. Here
networks keep all their layers and lose nearly all their channels and pixels, our kernels return at once, and a pass is
timed beside the same forward and backward with nothing measured. The difference is our Python and the torch operations
that it asks for; these are recorded, and timed by running them again, also in a difference. CPU time of the one thread;
all take turns, and medians are compared.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.case import PROJ_DIM
from bench.featurize.workload import NETWORKS
from journey.gradients import collect, rules
from journey.gradients.engine import GradientEngine
from journey.ops import cpu
from journey.ops.kernels import Kernels
from journey.projectors.random import CountSketch
from journey.projectors.scaled import Scaled

IMAGES, DRAWS, ROUNDS = 2, 2, 20
GOALS = {"CIFAR-10 UNet": 6.0, "Stable Diffusion 1.x UNet": 15.0}  # milliseconds


class Pass(NamedTuple):
    """A network of few channels, its values of a slice of rows, and where its gradients end: inputs of first layers."""

    network: nn.Module
    values: Callable[[slice], Tensor]
    ends: list[Tensor]


class NoKernels:
    """Counts calls of the compiled kernels instead of making them."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, op: str) -> Callable[..., None]:
        """Return what stands for a kernel."""

        def call(args: dict[str, Any], num_threads: int) -> None:
            self.calls[op] += 1

        return call


def norm_grads(x: Tensor, g: Tensor, *, groups: int = 0, centered: bool = True, eps: float) -> Tensor:
    """Stand for the operation, which on the CPU is torch's, without torch's dispatcher."""
    return Kernels.norm_grads(cpu.CpuKernels(), x, g, groups, centered, eps)


class Recorded(TorchDispatchMode):
    """The torch operations of a call, to be run again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep an operation, and run it."""
        if func.namespace == "aten":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @property
    def launches(self) -> Counter[str]:
        """How often each of them would launch something on a GPU: most views and all memory do not."""
        names = [func._schema.name[6:] for func, *_ in self.calls if not func.is_view]
        return Counter(name for name in names if name not in _NO_LAUNCH)

    @torch.no_grad()
    def again(self) -> None:
        """Run them all."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


_NO_LAUNCH = ("empty", "new_empty", "empty_like", "new_empty_strided", "_unsafe_view", "_reshape_alias")


def main() -> int:
    """Print what a pass costs for each network."""
    torch.set_num_threads(1)
    for name, make in (("CIFAR-10 UNet", cifar10), ("Stable Diffusion 1.x UNet", stable_diffusion)):
        work = make()
        milliseconds, goal = measure(name, work), GOALS[name]
        print(f"  {milliseconds:.1f} ms of our own Python; goal <= {goal:g}", flush=True)
    return 0


def cifar10() -> Pass:
    """Return the UNet of google/ddpm-cifar10-32, an eighth as wide, for images of 8x8."""
    torch.manual_seed(0)
    untyped: Any = UNet2DModel
    fields = NETWORKS["35.7M"] | {"block_out_channels": (32, 32, 32, 32)}
    network = untyped(sample_size=8, **fields).eval()
    x, times = torch.randn(IMAGES * DRAWS, 3, 8, 8), torch.arange(IMAGES * DRAWS, dtype=torch.int64)
    return Pass(network, lambda rows: network(x[rows], times[rows]).sample.square().mean((1, 2, 3)), ends(network))


def stable_diffusion() -> Pass:
    """Return the UNet of Stable Diffusion 1.x, a tenth as wide, for latents of 8x8."""
    torch.manual_seed(0)
    untyped: Any = UNet2DConditionModel
    network = untyped(
        sample_size=8, block_out_channels=(32, 64, 64, 64), cross_attention_dim=32, attention_head_dim=8
    ).eval()
    x, times = torch.randn(IMAGES * DRAWS, 4, 8, 8), torch.arange(IMAGES * DRAWS, dtype=torch.int64)
    text = torch.randn(IMAGES * DRAWS, 4, 32)
    return Pass(
        network,
        lambda rows: network(x[rows], times[rows], text[rows]).sample.square().mean((1, 2, 3)),
        [*ends(network), text],
    )


def ends(network: Any) -> list[Tensor]:
    """Return biases of the first layers of images and times, whose gradients cost about nothing."""
    return [network.conv_in.bias, network.time_embedding.linear_1.bias]


def measure(name: str, work: Pass) -> float:
    """Print what one pass of the default costs the host, and return the milliseconds that are our own."""
    engine = GradientEngine(work.network)
    projector = Scaled(CountSketch(PROJ_DIM), dict.fromkeys(engine.slots, 1.5))
    features = torch.zeros(IMAGES, PROJ_DIM)

    def featurize() -> None:
        engine.add_gradients_(features, work.values, num_rows=IMAGES * DRAWS, projector=projector)

    def bare() -> None:
        work.values(slice(0, IMAGES * DRAWS)).sum().backward()

    def prepare(run: Callable[[], None]) -> Callable[[], None]:
        # Untimed. What autograd does for every gradient is what it does where nothing but the ends requires one.
        def prepared() -> None:
            for p in work.network.parameters():
                p.requires_grad_(run is featurize)
            for end in work.ends:
                end.requires_grad_(run is bare or isinstance(end, nn.Parameter))
                end.grad = None

        return prepared

    with as_on_cuda() as kernels, Recorded() as ours:
        prepare(featurize)()
        ours.calls.clear()
        featurize()
    launches = kernels.calls
    with Recorded() as torchs:
        prepare(bare)()
        torchs.calls.clear()
        bare()
    with as_on_cuda():
        calls = {"featurize": featurize, "bare": bare, "ours": ours.again, "torch's": torchs.again}
        times = interleaved(calls, prepare)
    more = ours.launches
    more.subtract(torchs.launches)
    beyond, dispatch = times["featurize"] - times["bare"], times["ours"] - times["torch's"]
    by_name = ", ".join(f"{count} {op}" for op, count in more.most_common() if count > 0)
    print(
        f"{name}: {len(engine.slots)} parameters in {len(list(work.network.modules()))} modules\n"
        f"  a pass takes {times['featurize']:.1f} ms, forward and backward alone {times['bare']:.1f}: {beyond:.1f} ms "
        f"beyond, of which torch's own operations {dispatch:.1f}\n"
        f"  {sum(launches.values())} native calls {dict(launches)}, {more.total()} torch operations: {by_name}",
        flush=True,
    )
    return beyond - dispatch


@contextmanager
def as_on_cuda() -> Iterator[NoKernels]:
    """Let calls of kernels end at once, and gradients be collected as on a GPU."""
    native, sums, kernels = cpu._native, list(collect._SUMS_ALONE), NoKernels()
    kept, untyped = collect._KEPT_BYTES["cpu"], cast(Any, cpu)
    untyped._native = SimpleNamespace(cpu=kernels)
    of_norms, sum_outputs = rules.norm_grads, cpu.sum_outputs_
    rules.norm_grads = norm_grads
    rules._NORM_KERNELS.append("cpu")
    untyped.sum_outputs_ = lambda *_: None  # on CUDA the layers' kernel does it
    collect._SUMS_ALONE.clear()
    collect._KEPT_BYTES["cpu"] = collect._KEPT_BYTES["cuda"]
    try:
        yield kernels
    finally:
        untyped._native = native
        rules.norm_grads, untyped.sum_outputs_ = of_norms, sum_outputs
        rules._NORM_KERNELS.remove("cpu")
        collect._SUMS_ALONE.extend(sums)
        collect._KEPT_BYTES["cpu"] = kept


def interleaved(
    calls: dict[str, Callable[[], None]], prepare: Callable[[Callable[[], None]], Callable[[], None]]
) -> dict[str, float]:
    """Return the median milliseconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, run in calls.items():
            prepare(run)()
            gc.collect()
            begin = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - begin)
    return {name: 1e3 * statistics.median(found[2:]) for name, found in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())

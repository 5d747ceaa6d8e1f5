"""The kernels inside your own training loop: what each sample adds to the gradient, sketched in the backward pass.

Trains a classifier on digits, a tenth of them mislabelled, and finds these by their sketches. Takes ten seconds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from journey import ops
from journey.demo.digits import load_digits_dataset


class Sketch:
    """Adds the weight gradients of linear layers, each sample's apart, to ``rows``. [batch, proj_dim]"""

    def __init__(self, model: nn.Module) -> None:
        self.rows = torch.zeros(0)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):  # nn.Conv2d likewise, with conv=ops.ConvGeometry(...)
                key = ops.derive_key(0, f"{name}.weight")
                layer.register_forward_hook(lambda _, given, output, key=key: self.watch(key, given[0], output))

    def watch(self, key: int, a: Tensor, output: Tensor) -> None:
        """Wait for the gradient g of a layer's output; ``g^T a`` is sketched and never formed."""
        output.register_hook(lambda g: ops.sketch_outer_(self.rows, a.detach()[:, None], g[:, None], key=key))


def main() -> None:
    """Train, look at the samples that pushed most, compare one of them with autograd."""
    torch.manual_seed(0)
    digits = load_digits_dataset(8)
    wrong = torch.rand(len(digits)) < 0.1
    labels = torch.where(wrong, (digits.labels + torch.randint(1, 10, wrong.shape)) % 10, digits.labels)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, sketch, features = torch.optim.Adam(model.parameters()), Sketch(model), torch.zeros(len(digits), 1024)
    for epoch in range(10):
        for batch in torch.randperm(len(digits)).split(64):
            optimizer.zero_grad()
            sketch.rows = torch.zeros(len(batch), 1024)
            F.cross_entropy(model(digits.images[batch]), labels[batch]).backward()  # adds to the rows, too
            optimizer.step()
            features[batch] += sketch.rows
        strongest = features.norm(dim=1).topk(int(wrong.sum())).indices
        print(f"epoch {epoch}: of the samples that pushed most {wrong[strongest].float().mean():.0%} are mislabelled")
    print(f"by chance: {wrong.float().mean():.0%}")

    model.zero_grad()
    sketch.rows, expected = torch.zeros(1, 1024), torch.zeros(1, 1024)
    F.cross_entropy(model(digits.images[:1]), labels[:1]).backward()
    for name in ("1.weight", "3.weight"):
        ops.sketch_(expected, model.get_parameter(name).grad[None], key=ops.derive_key(0, name))
    error = (sketch.rows - expected).abs().max() / expected.abs().max()
    print(f"one sample's sketch is that of its gradient by autograd, to {error:.0e} of the largest entry")


if __name__ == "__main__":
    main()

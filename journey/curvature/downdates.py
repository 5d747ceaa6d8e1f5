"""What removing images together does to a linear model: the curvature without their blocks, image after image.

With the damped curvature A over the n training images, the block W_i of image i in it (its part of the Gauss-Newton
matrix over n) and its gradient g_i, training without the images S moves a model that is linear in its parameters by
``(A - sum_S W_i)^-1 sum_S g_i / n``, exactly. A query with gradient q then rises, to first order, by 1 / n times

``f(S) = q^T (A - sum_S W_i)^-1 sum_S g_i``

Blocks are of low rank, ``W_i = B_i^T B_i``, so that each step is a downdate by Woodbury's identity:
``C_(S+i) = C_S + C_S B_i^T (I - B_i C_S B_i^T)^-1 B_i C_S``. The weights 1 / n of the other images stay as they are;
1 / (n - |S|) in their place would damp by ``(n - |S|) / n`` times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Downdates:
    """The joint effect of removing images on one query, as they are added to a set one by one.

    Args:
        curvature: A, positive definite, float64. [proj_dim, proj_dim]
        blocks: B_i, the rows whose outer products sum up to what A holds of candidate i. [num_candidates, rank,
            proj_dim]
        gradients: g_i of the candidates. [num_candidates, proj_dim]
        query: q. [proj_dim]
        left_out: Whether gradients have the residual that an image leaves when it alone is left out: what it leaves
            with it is then ``g_i - W_i A^-1 g_i``, and the effect of removing one image is ``q^T A^-1 g_i``.

    Attributes:
        total: f of the images that were added.

    Raises:
        ValueError: If A is not positive definite.
    """

    def __init__(self, curvature: Tensor, blocks: Tensor, gradients: Tensor, query: Tensor, *, left_out: bool) -> None:
        factor, failed = torch.linalg.cholesky_ex(curvature)
        if failed.item():
            raise ValueError("curvature must be positive definite; a larger damping makes it so")
        # From here on in coordinates in which A is the identity.
        given = torch.cat([query[None], gradients, blocks.flatten(0, 1)]).to(factor)
        solved = torch.linalg.solve_triangular(factor, given.T, upper=False).T.contiguous()
        num, rank, length = blocks.shape
        query, gradients, blocks = solved[0], solved[1 : num + 1], solved[num + 1 :].view(num, rank, length)
        if left_out:
            inner = torch.einsum("crk,ck->cr", blocks, gradients)
            gradients = gradients - torch.einsum("crk,cr->ck", blocks, inner)
        self._blocks, self._query, self._gradients = blocks, query, gradients
        # Everything below is under C_S: blocks, gradients and query against each other and the sum of S.
        self._leverages = blocks @ blocks.transpose(1, 2)  # [num_candidates, rank, rank]
        self._block_query = blocks @ query  # [num_candidates, rank]
        self._block_gradient = torch.einsum("crk,ck->cr", blocks, gradients)
        self._block_sum = torch.zeros_like(self._block_query)
        self._gradient_query = gradients @ query  # [num_candidates]
        self._sum = torch.zeros_like(query)
        self._growth = query.new_zeros(length, 0)  # C_S = I + growth growth^T
        self.total = 0.0

    def totals(self) -> Tensor:
        """Return f of the set with each candidate added; NaN where no curvature is left. [num_candidates]"""
        factor, failed = torch.linalg.cholesky_ex(self._rest(self._leverages))
        both = (self._block_sum + self._block_gradient).unsqueeze(2)
        solved = torch.cholesky_solve(both, factor)[..., 0]
        found = self.total + self._gradient_query + (self._block_query * solved).sum(1)
        return torch.where(failed > 0, torch.nan, found)

    def add(self, candidate: int) -> None:
        """Add a candidate to the set.

        Raises:
            ValueError: If no curvature is left then in some direction.
        """
        total = self.totals()[candidate].item()
        if total != total:
            raise ValueError(f"candidate {candidate} holds all curvature that the set has left in a direction")
        block, gradient = self._blocks[candidate], self._gradients[candidate]
        rank, length = block.shape
        under = block + (block @ self._growth) @ self._growth.T  # B_i C_S
        factor = torch.linalg.cholesky(self._rest(self._leverages[candidate]))
        grown = torch.linalg.solve_triangular(factor, under, upper=False).T  # [proj_dim, rank]
        self._growth = torch.cat([self._growth, grown], 1)
        added = gradient + self._growth @ (self._growth.T @ gradient)  # C_(S+i) g_i

        flat = self._blocks.view(-1, length)
        against = (flat @ torch.cat([grown, added[:, None]], 1)).view(len(self._blocks), rank, -1)
        seen, by_gradient = against[..., :-1], against[..., -1]
        query, gradients = grown.T @ self._query, self._gradients @ grown
        self._leverages += seen @ seen.transpose(1, 2)
        self._block_query += seen @ query
        self._block_gradient += torch.einsum("crj,cj->cr", seen, gradients)
        self._block_sum += seen @ (grown.T @ self._sum) + by_gradient
        self._gradient_query += gradients @ query
        self._sum = self._sum + gradient
        self.total = total

    def _rest(self, leverages: Tensor) -> Tensor:
        """``I - B C B^T`` of leverages ``B C B^T``."""
        identity = torch.eye(leverages.shape[-1], dtype=torch.float64, device=leverages.device)
        return identity - leverages

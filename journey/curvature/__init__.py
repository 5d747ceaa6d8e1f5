"""The curvature of the training loss, fitted before gradients are projected.

In reading order: ``whitened`` (gradients over the root of the curvature, then another projector), ``blocks`` (one
parameter's curvature), ``pseudo_gradients`` (gradients whose mean outer product is the Gauss-Newton matrix), ``kfac``
(Kronecker factors of it), ``ekfac`` (the same with eigenvalues that are measured), ``moments`` (sums of outer
products).
"""

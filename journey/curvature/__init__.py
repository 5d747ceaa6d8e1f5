"""The curvature of the training loss: scales for gradients, the Gram matrix of scores, and factors for whitening.

In reading order: ``pseudo_gradients`` (gradients whose mean outer product is the Gauss-Newton matrix), ``scales`` (one
number per parameter), ``gram`` (the matrix that scores are solved with), ``directions`` (the few in which rows say
most, for short exports), ``downdates`` (the matrix without some images). Beside these, which are the default,
stand ``whitened`` (gradients over the root of the curvature, then another projector), ``blocks`` (one parameter's
curvature), ``kfac`` (Kronecker factors), ``ekfac`` (the same with measured eigenvalues) and ``moments`` (sums of outer
products).
"""

"""Per-sample gradients of any network in one backward pass, handed to a projector layer by layer.

In reading order: ``engine`` (one pass over a batch), ``hooks`` (each layer's input and output gradient), ``rules``
(what a kind of layer makes of the two), ``per_row`` (parameters outside of such layers), ``collect`` (what is handed
on together), ``coverage`` (which parameters they reach), ``storage`` (weights in few bits), ``rows`` (gradients and
norms of single rows), ``sizes`` (how large the gradients of each layer are), ``compare`` and ``check`` (against
autograd), ``selection`` (which parameters are measured), ``names`` (parameters in errors), ``passes`` (how many rows
go through at once), ``memory`` (how many fit).
"""

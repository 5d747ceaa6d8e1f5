"""The third verb: who steered this step.

In reading order: ``score`` (the verb), ``scores`` (what it gives, ranked), ``queries`` (what is measured of the
generated images), ``regions`` (parts of an image), ``gram`` (the Gram matrix of stored features), ``spectrum`` (its
decomposition, and the damped solve), ``influence`` (by bin of training timesteps and step of the generation),
``preconditioners`` (the same solve for other methods).
"""

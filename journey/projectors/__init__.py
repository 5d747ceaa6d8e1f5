"""Linear maps from gradients to features.

A projector is a configuration; it adds the image of one parameter's gradients to the features, so the features of a
model are the sum over its parameters, in any order. In reading order: ``base`` (the contract), ``scaled`` (the default:
one scale per parameter, then another projector), ``random`` (the count sketch and dense projections), ``exact`` (the
gradients themselves, a matrix of the caller's), ``structured`` (masks, and factors of each layer's outer product).
"""

"""The number that is differentiated, and the timesteps, noise and images at which it is taken.

In reading order: ``measurements`` (what is differentiated), ``left_out`` (the default: the loss of an image that was
left out), ``draws`` (at which timesteps and noise), ``importance_draws`` and ``shared_draws`` (other choices of those),
``row_values`` (the measurement of rows of a batch), ``experts`` (draws dealt out to several networks), ``featurizer``
(their projected gradients), ``batch`` (encoded images at their draws, with and without gradients).
"""

"""Are the numbers sound?

In reading order: ``inspect`` (faults, norms, spectrum and noise of some features, with warnings in words), ``layers``
(sizes and faults by layer), ``score_noise`` (the Monte-Carlo noise of scores).
"""

"""Are the numbers sound?

In reading order: ``inspect`` (faults and norms of features, spectrum of the fit's Gram matrix, noise of scores, with
warnings in words), ``layers`` (sizes and faults by layer), ``score_noise`` (standard errors of scores, step by step).
"""

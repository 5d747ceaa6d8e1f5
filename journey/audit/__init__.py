"""Questions about a training set: what is wrong with it, and is this image a copy of one of its images?

In reading order: ``kernel`` (what training images do to one another), ``self_influence`` (learned by heart),
``near_duplicates``, ``opponents`` (what works against the rest), ``adapter`` (the base alone, for a while),
``captions`` (that do not fit), ``odd`` (what does not belong), ``finding`` (what is told of all this), ``tell`` (in
which words), ``check`` (all questions at once), ``page``, ``similarity`` (pixels, structure, matching regions) and
``copies``.
"""

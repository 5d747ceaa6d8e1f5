"""The third verb: who steered this step, or this image.

In reading order: ``score`` (the verb), ``columns`` (products of queries with rows, some shards at a time), ``scores``
(its result: totals, strengths, tables), ``ranked`` and ``top`` (the strongest, of all scores or of blocks),
``errors`` (their standard errors), ``groups`` (sums over contributors) and ``payments``, ``sets`` and ``removal``
(images whose removal together does most), ``places`` (which query and step is meant), ``saved`` (files), ``queries``
(how steps of generated images are measured), ``image_queries`` (how whole images are), ``regions`` (parts of an image),
``influence`` (scores by bin of training timesteps and step of the generation).
"""

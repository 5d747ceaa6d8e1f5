"""Do scores predict retraining?

In reading order: ``tiers`` (data and sizes), ``whole`` (whole images: what retraining says, who competes, and the
comparison), ``steps`` (the same at single steps), ``emoji_lora`` (a tier of both that fine-tunes adapters),
``exports`` (short rows in an index), ``removals`` and ``removals_report`` (removing what is named), ``planted``
(finding what was planted), ``groups`` (sums over groups), ``arguments`` (what all of them take, and where results go).
"""

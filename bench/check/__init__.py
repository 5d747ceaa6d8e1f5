"""Does ``journey check`` find what was planted in training sets, and ``journey.copies`` copies?

In reading order: ``folders`` (emoji with planted faults), ``adapters`` (LoRAs trained on them), ``rivals`` (loss,
pixels, the optimal denoiser), ``faults`` (precision and recall), ``copying`` (copies against held-out images).
"""

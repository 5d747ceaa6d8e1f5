"""One view of diffusion models, and one small adapter for each family.

In reading order: ``denoiser`` (the view: noise in, prediction out), ``load`` (the forms in which people have models),
``network`` (what is wrapped around a network, and how it answers), ``schedules`` (signal, noise and target at a
timestep; intervals of timesteps), ``schedulers`` and ``edm`` (those of diffusers), ``condition`` (what a network is
told), ``guidance`` (how two predictions make one), ``encoding`` (the frozen parts, run once for each image),
``checkpoints`` (sets of weights), ``weight_files`` (how they lie on a disk), ``lora_files`` (adapters) and
``lora_names`` (in the spellings of those who train them).

Bases: ``latent`` (behind an autoencoder), ``video`` (behind one of videos), ``text`` (captions), ``flow`` (transformers
trained by flow matching), ``apart`` (for layers that take all rows as one), ``experts`` (two networks as one). Bare
networks with one condition: ``conditional``; of scores: ``score_sde``. Families: ``latent_diffusion``, ``dit``,
``pixart``, ``hunyuan_dit``, ``stable_diffusion``, ``stable_diffusion_xl``, ``stable_diffusion_3``, ``cogvideox``,
``stable_audio``; over ``flow``: ``flux``, ``flux_2``, ``z_image``, ``qwen_image``, ``sana``, ``chroma``, ``lumina_2``,
``aura_flow``, ``hidream``, ``wan``, ``ltx``, ``hunyuan_video``.
"""

"""Does an attribution predict retraining? The protocols, and the retraining that they need.

In reading order: ``subsets`` (which images a model is trained on), ``retrain`` (a folder of retrained models),
``training`` (how one is trained), ``optimize`` (the loop), ``responses`` (what retrained models say), ``protocols``
(subsets, retraining and responses together), ``lds`` (the linear datamodeling score), ``ranks``, ``removal`` and
``counterfactual`` (removing what is named), ``effects`` (what that changes), ``detection`` (finding what was planted).
"""

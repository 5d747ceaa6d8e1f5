"""A whole featurizing step beside a training step, the published pipeline and other libraries."""

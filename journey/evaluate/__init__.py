"""Does an attribution predict what retraining does? The protocols, and the retraining that they need."""

"""How well attribution scores predict what retraining does (LDS), for all methods under one protocol."""

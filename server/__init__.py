"""Twofold's instance: one model, served over HTTP by a pool of replicas."""

__version__ = "0.1.0"

"""Serves machine-learning models over HTTP. This package is the foundation: it imports neither half."""

__version__ = "0.1.0"

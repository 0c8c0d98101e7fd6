"""Validation of an artifact: the stages of `twofold check`, and the signatures in score.py."""

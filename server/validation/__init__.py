"""Whether a model can be served: the stages of `twofold check`, and the signatures in score.py."""

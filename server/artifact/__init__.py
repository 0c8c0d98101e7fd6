"""The model artifact: a folder or zip with score.py, and the diagnostics about it."""

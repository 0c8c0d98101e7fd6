"""Processes as seen by their parent: forked, watched, reaped, run once."""

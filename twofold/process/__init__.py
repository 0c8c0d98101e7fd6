"""Child processes in their parent: forked, watched, reaped, run once."""

"""The compiled form of the hot path: built by mypyc, loaded where it fits the source."""

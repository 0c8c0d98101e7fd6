"""Counters and histograms of processes in shared memory, and their exposition for Prometheus."""

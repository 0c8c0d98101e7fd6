"""What processes count: counters and histograms in shared memory, and how Prometheus is told."""

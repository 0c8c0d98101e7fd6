"""What an instance counts and shows: counters, status page, Prometheus exposition."""

"""Telemetry of an instance: counters, published status, Prometheus exposition."""

"""Bandwidth limits: token bucket, leases, fair queue, limiter, request rate, autoscaling."""

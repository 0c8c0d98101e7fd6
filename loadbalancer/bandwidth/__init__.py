"""How much may pass: token bucket, leases, fair queue, limiter, request rate, autoscaling."""

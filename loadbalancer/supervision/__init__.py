"""The supervisor of a load balancer: children's resources, reload by exec, startup checks."""

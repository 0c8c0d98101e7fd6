"""The parent of a load balancer: children's resources, hot restart, startup checks."""

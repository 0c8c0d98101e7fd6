"""The load balancer: one address for a pool of instances, with a bandwidth limit."""

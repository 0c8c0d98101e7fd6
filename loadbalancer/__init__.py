"""The load balancer: one entry point before a pool of instances, with a bandwidth in Mbps."""

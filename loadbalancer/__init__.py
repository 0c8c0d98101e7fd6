"""One address before a pool of instances, with a bandwidth in Mbps."""

"""One instance: one model, served over HTTP by a pool of replicas."""

"""Access control: addresses, tokens, OCI signatures, TLS."""

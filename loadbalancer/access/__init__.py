"""Who may come in: addresses, tokens, OCI signatures, TLS."""

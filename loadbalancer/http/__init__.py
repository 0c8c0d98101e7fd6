"""What a proxied message becomes: request plans, response heads, forwarding, error responses. Pure."""

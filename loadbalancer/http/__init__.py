"""HTTP proxying: request plans, response heads, forwarded fields, error responses. Pure."""

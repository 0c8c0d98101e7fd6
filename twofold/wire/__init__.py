"""Parsing and formatting of HTTP/1.1 heads, chunks, request ids, PROXY protocol lines. No I/O."""

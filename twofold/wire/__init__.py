"""Bytes to messages and back: HTTP/1.1 heads, chunks, request ids, PROXY protocol. No I/O."""

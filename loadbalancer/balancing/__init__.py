"""Which instance gets a request: selection, wait queue, outlier detection, retry budget. Pure."""

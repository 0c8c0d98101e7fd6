"""Instance selection, wait queue, outlier detection, retry budget. Pure."""

"""The interpreter that runs the model, and the source of its archive."""

"""Which interpreter runs the model, and where its archive comes from."""

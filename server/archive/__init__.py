"""Archives, unpacked once and safely. Knows nothing of models."""

"""What one process publishes to the others in shared memory."""

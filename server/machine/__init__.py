"""What this machine can carry: cores, GPUs, memory."""

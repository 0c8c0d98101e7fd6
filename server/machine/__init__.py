"""The capacity of this machine: cores, GPUs, memory."""

"""Kernels of our own for NVIDIA GPUs, in Triton; imported where they run, since a CPU build of PyTorch brings no Triton."""

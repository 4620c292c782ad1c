"""Kernels of systems, in CUDA. A module of this folder imports torch, and cuda.bindings where it compiles."""

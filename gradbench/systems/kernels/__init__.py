"""Kernels of systems, in Triton. What imports a module of this folder needs torch and triton."""

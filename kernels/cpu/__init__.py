"""The kernels for a CPU, in numba."""

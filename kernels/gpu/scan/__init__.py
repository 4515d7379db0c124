"""The selective scan: kernels, and how they are launched."""

"""The convolution and SiLU."""

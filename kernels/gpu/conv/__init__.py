"""The convolution and SiLU, for one direction or both."""

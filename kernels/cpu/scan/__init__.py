"""The selective scan: loops, and how they are launched."""

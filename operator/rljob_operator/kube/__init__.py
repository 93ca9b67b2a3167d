"""The I/O edge: the apiserver, and what is kept of it in memory."""

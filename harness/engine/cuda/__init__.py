"""Captured steps on a GPU: fixed buffers for many adapters, rows laid end to end, one replay for each
pass."""

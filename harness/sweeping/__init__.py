"""Sweeps as processes: one driver that decides, one warm worker per device that trains."""

"""Measuring: bytes by part and phase, step times. The warm-up and synchronisation rules stand here."""

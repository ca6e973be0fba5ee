"""Quick passes over small bases on a CPU, the same bits as the reference."""

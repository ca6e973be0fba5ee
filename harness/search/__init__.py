"""What a sweep asks, where it looks and how it searches; imports no torch and trains nothing."""

"""What the fixed words of the command line do."""

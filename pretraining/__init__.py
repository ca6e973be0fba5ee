"""How the embedded base was made; outside the wheel."""

"""What one run is: its typed configuration, composed, checked and identified; nothing here imports torch."""

"""The packed pass: many adapters on one frozen base in one forward and backward."""

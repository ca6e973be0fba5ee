"""Data: sources, templates, tokenised rows, packing and batch order. Imports no model code."""

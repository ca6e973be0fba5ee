"""Data: sources, templates, tokenized rows, packing and batch order. Imports no model code."""

"""The frozen base: formats, packed layers, loading, caching and the forward pass over it."""

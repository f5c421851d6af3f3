"""Studies: what influences say about a model; each a statement over the store's tables, a figure, how to read it."""

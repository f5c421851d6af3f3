"""BM25 and TF-IDF arithmetic: NumPy only; no storage, no orchestration."""

"""How small causal language models are made and taught: torch and transformers only."""

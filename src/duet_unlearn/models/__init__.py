"""Hugging Face models: loading, saving, adapters, and what is read inside them."""

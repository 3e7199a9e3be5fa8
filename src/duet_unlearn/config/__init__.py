"""Recipes: sections, layers of YAML, and the whole with its checks."""

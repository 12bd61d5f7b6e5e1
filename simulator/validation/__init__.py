"""Validation: published measurements as tidy tables, and how far predictions are off them, family by family."""

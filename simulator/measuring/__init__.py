"""Measuring: a model's operators, chunks and pipelines run and timed with PyTorch (the extra `simpipe[measure]`)."""

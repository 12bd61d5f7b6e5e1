"""Planning: many configurations in, a table of figures, a choice and its reasons out."""

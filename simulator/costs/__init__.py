"""What a stage costs: seconds, bytes and memory, given by hand, measured or modelled."""

"""Calibration: timings that people have become the curves of a machine's profile, each with how sure it is."""

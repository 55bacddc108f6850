"""Latency, accuracy and calibration, with intervals."""

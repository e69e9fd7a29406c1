"""Calibration: compression by inputs alone, without labels and gradient steps."""

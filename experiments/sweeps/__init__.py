"""Sweeps: grids of settings, trained as local processes or as jobs of a cluster."""

"""Trainings of an experiment: phases, steps, checkpoints, budgets, sharding."""

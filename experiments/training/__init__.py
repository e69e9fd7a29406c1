"""The trainings of an experiment: what each is, its steps, its checkpoints, where it lies."""

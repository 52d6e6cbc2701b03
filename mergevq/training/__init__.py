"""Trainings: a model with its losses, one file a task, for a loop to drive."""

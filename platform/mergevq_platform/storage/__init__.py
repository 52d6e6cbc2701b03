"""Runs, checkpoints, their locations, and the one lookup from a name to a checkpoint."""

"""Checkpoints, runs, and where both lie."""

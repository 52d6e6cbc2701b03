"""Allocators on the platform: by name, their scores on any number of workers, calibrated on the training split."""

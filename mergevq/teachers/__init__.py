"""Frozen networks whose features an alignment term matches."""

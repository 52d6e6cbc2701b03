"""Procedural labelled images, drawn from numbers: they need neither files nor a cluster."""

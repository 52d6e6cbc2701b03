"""Networks whose features an alignment learns from."""

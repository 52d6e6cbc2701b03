"""The terms of the tokenizer's training: one file per kind, each with its configuration."""

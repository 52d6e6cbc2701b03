"""Work around a cluster: submission, examination, prediction."""

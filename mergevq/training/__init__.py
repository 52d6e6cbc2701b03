"""What a training loop drives, a file each task."""

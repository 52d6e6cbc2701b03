"""Sources of images for packing: their layouts, splits and classes."""

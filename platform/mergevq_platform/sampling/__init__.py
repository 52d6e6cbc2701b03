"""Sampling images of a trained generator: the pipeline from classes to images, and the job that fills a folder with them."""

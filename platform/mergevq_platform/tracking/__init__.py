"""Tracking: a run writes a journal on local disk, and one writer brings it to MLflow.

The only package of the platform that imports mlflow, and it does so late: importing these modules is cheap.
"""

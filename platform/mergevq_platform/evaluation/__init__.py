"""Evaluation, one stack: `jobs(spec) → answer(job) on any worker → merge → Report`, the same for every kind.

api.py          evaluate, reconstruct, register by name; what follows a training
spec.py splits.py passes.py worker.py results.py cache.py     what is evaluated, the jobs, who does them, how results merge
tokenizer.py generator.py classifier.py images.py             an evaluator a kind: its jobs and rows; its side of a worker beside it
statistics.py manifold.py neighbours.py probing.py            feature statistics; precision and recall, neighbours, probes on workers
report.py curve.py generator_report.py compare.py             the report, its files and records; curves side by side
"""

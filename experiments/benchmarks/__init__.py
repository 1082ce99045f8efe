"""Benchmarks: cost of a step, speed of meta-training, bias of estimators."""

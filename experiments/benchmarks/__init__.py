"""Benchmarks: what steps and meta-training cost."""

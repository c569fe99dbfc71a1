"""Benchmarks with one front door: `python -m tests.benchmarks NAME`, figures as JSON, bars in each benchmark's file."""

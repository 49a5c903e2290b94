"""Benchmarks of sedd_fast. Run from the root of the checkout; nothing here is installed."""

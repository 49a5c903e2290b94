"""What the benchmarks share: timing, cases, reports, charts, the steps of ``make gpu``."""

"""What is small and what is fast, measured: python -m benchmarks [NAME ...]."""

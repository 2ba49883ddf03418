"""The parts of bench_gpu.py: what is measured in which order, by whom, and where the results go."""

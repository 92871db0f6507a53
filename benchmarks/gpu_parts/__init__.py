"""What benchmarks/gpu.py is made of; the command puts its own folder and headscope on the path."""

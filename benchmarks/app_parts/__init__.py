"""What ``benchmarks/app.py`` measures."""

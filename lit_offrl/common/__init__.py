"""What every package may import: errors, files, signals, random numbers."""

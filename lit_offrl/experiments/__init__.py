"""Trainings and evaluations as jobs, each a process and a folder of its own; no torch."""

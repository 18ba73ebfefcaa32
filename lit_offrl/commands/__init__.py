"""Verbs that train nothing, one a file, whose ``main`` takes arguments and returns the exit code.

A fault that the user can correct is raised as a ``LitOffRLError`` of one line.
"""

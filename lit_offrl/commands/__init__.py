"""Verbs that train nothing, one a file, whose ``main`` takes arguments and returns the exit code.

What the user can put right is raised as a ``LitOffRLError`` of one line.
"""

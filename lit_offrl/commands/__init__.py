"""Verbs that train nothing, one a file."""

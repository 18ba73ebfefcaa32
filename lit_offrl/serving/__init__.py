"""A trained policy behind HTTP: observations in, actions out."""

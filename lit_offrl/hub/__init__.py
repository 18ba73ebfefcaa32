"""Trained policies on Hugging Face's hub: what is put there, and how it comes back."""

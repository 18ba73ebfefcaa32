"""Commands in processes of their own: files about them, what they leave behind, locks; no torch."""

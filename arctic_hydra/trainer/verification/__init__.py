"""Verification of exports: each is loaded again, as a user would load it, and compared with the trained model."""

"""Verification of exports: each is loaded again as its users do, and compared with the model that was trained."""

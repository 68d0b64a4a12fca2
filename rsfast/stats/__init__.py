"""Confidence bounds, and the rules that make certificates of them. No torch."""

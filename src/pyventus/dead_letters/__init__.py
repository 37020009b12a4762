"""Emissions that could not be handled, kept for a person to look at and replay."""

"""The record of which handler has run for which emission."""

"""Emitters: what a program calls. Where and how handlers run is the emitter's choice."""

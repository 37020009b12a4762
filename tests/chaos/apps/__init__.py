"""Apps whose workers break down at an exact moment."""

"""Apps that the tests' workers run."""

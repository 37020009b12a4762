"""What the tests of emitting start in processes of their own."""

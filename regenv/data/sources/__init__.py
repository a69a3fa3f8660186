"""Sources of pairs, one a file."""

"""Sources of pairs, one per file; each is a PairSource."""

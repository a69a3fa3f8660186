"""Real and synthetic subjects, prepared once and kept in the cache folder, and the downloads they come from."""

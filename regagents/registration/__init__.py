"""Two images registered by agents and what follows them."""

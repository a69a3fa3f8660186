"""The parts that tasks are made of: each a frozen dataclass with pure, batched methods."""

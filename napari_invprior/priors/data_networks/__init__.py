"""Networks that learn from the data of one operator and an unrelated reference."""

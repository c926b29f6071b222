"""Load: users of every kind against a running stack, and what it promises them."""

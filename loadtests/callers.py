"""Who is who to the gateway in a run with a flood: each by a key of its own."""

FLOOD_KEY = "flood"
PEOPLE_KEYS = tuple(f"person-{number}" for number in range(32))

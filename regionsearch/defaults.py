"""What is meant when nothing is said."""

URL = "http://localhost:8000"
"""A gateway on this machine, as `regionsearch up` starts it."""

COLLECTION = "default"
"""The collection that is there from the start."""

FEATURES_WEIGHT = 0.25
"""Of the segmenter's features in a vector, where the embedding's is 1; measured in docs/models.md."""

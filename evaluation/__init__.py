"""Measures how well things are found: data sets, metrics, systems under test, reports."""

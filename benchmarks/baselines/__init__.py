"""Other vector stores on the same data, each in an environment and a process of its own.

`environments.py` makes the environments on demand. Every other file is a program that runs inside one of
them and imports nothing of this project; `driver.py` is what they share.
"""

"""Every operation of a gateway, said once: its arguments, its requests, and how the answers are read.

The functions send nothing and read no file: they answer with an `Operation`, and a transport does the rest.
`Client` and `AsyncClient` have them all as methods.
"""

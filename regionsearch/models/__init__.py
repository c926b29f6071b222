"""Model weights: which there are, where they live, whether they are whole.

Services start from what is there. `regionsearch.models.download` is the only code of the project that reaches
the network.
"""

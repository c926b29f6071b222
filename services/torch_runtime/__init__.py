"""What the two model services share on top of torch: devices, precision, streams, model files and failures.

The runtime itself stays without torch; gateway and searcher do not import this package.
"""

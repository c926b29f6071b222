"""What can be asked, declared once: the bodies and forms of the HTTP API.

The gateway checks JSON and forms with these classes and goes on with the contract's messages (`to_proto`).
The client makes the same objects of its arguments, and sends them as JSON (`to_json`) or as those messages.
"""

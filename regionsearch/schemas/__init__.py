"""The JSON of the HTTP API, declared once for the gateway and the client."""

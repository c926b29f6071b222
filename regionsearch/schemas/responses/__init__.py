"""What the gateway answers, over HTTP and gRPC: the same classes on both ends.

The gateway makes them from the contract's messages (`from_proto`), and they describe its JSON in the OpenAPI
document. The client reads them from JSON or from messages, and ignores fields that a newer server adds.
"""

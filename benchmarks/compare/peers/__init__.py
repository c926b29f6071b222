"""The peers: one file each, with a class ``Peer`` (`benchmarks.compare.driver.Peer`)."""

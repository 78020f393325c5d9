"""The web page: `mcm.generate` for people who look, on loopback unless told otherwise."""

"""How the zoo's networks were made: one file a network, all from the renderer alone."""

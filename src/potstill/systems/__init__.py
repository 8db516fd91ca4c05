"""Systems of the literature, and the catalogue of all that Potstill has."""

"""One start against another: which experiments tell them apart, and by how much."""

"""Facts: one TOML file per kind of samples, and the small sample sets that travel with edgeexport."""

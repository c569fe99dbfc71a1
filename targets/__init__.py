"""Facts: one TOML file per place to run. A new phone is a new file here; edgeexport.records.target reads them."""

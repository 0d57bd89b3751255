"""Networks, one file per family.  A network maps a mixture to named outputs, its heads, listed in `provides`."""

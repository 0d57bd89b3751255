"""Networks: one file for each family.  A network maps signals to its heads and declares them in `provides`."""

# The configuration tree; a package, so that Hydra finds it wherever `separate` is installed.

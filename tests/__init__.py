"""A package, not a bare folder: torch-fidelity installs a package `tests` of its own, which would win over one."""

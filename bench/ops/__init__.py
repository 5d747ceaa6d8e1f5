"""The compiled operations, each beside its peers and the bound of this machine."""

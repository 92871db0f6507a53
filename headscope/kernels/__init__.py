"""How attention functionals are computed: the explicit oracle, the row sweep, identities on fused kernels."""

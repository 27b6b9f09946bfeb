"""plm-edge: small MLA language models on small machines, with a latent cache."""

__version__ = "0.1.0"

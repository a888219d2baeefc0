"""The Wan 2.1 and 2.2 family: transformer, causal video autoencoder, key maps."""

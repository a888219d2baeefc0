"""Mathematics of the models: one definition each; nothing here knows of loading, sampling or devices."""

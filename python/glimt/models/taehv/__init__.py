"""Tiny autoencoders of the TAEHV form: previews at a small cost, and by choice the final decode."""

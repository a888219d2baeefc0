"""Everything that can only be known on a GPU, in one report within a time budget; see ``__main__``."""

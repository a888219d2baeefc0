"""Speed and memory of glimt beside other engines on the same checkpoint; see README.md here."""

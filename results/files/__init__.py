"""The files of a batch: parts, their merge, and the final files."""

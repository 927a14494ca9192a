"""Lines of JSON: their shapes, their places in a file, and what is wrong with one."""

"""Shapes and rules: what is stored, sent and answered. No I/O and no clock."""

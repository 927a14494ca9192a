"""Schemas and rules of records, objects and answers, without I/O."""

"""Faust apps, with corrections that use Faust's internals."""

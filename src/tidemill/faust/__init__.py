"""Everything that knows the inside of Faust."""

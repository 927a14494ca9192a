"""How files come in: forms taken apart while they arrive, uploads in parts put together."""

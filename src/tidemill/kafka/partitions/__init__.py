"""Work on the records of an owned partition: hand-over, tables, acknowledgements, held records, dead letters."""

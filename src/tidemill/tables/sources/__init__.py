"""Sources of rows, by format: files of tables, and folders of documents and pictures."""

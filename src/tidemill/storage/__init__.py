"""Object stores, disk space, and folders on disk."""

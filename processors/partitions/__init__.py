"""What a process keeps of each partition that it has been assigned."""

"""What the data looks like on disk, and how it becomes batches."""

"""State of the process: threads, memory of dropped outputs, processor, progress."""

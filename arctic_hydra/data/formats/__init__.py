"""Row formats, read into conversations, plain texts and preference pairs."""

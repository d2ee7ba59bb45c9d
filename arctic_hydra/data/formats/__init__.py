"""Row formats to conversations, texts and preference pairs."""

"""What other libraries for data attribution take, and what they leave behind. None of them is needed."""

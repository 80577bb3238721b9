"""What tools that work through captioned images share: command line, resumption, card, sheet."""

"""Drop-in replacements for other projects' certification loops, one file each."""

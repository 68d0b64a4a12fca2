"""Run folders: written, read, resumed, merged and certified again."""

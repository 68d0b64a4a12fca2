"""Models and data by name, from files, folders and the hubs of other libraries."""

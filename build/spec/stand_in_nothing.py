"""Takes the place of a module that is imported, but of which nothing is used."""

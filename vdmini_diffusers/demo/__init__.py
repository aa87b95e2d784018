"""Small teachers that ship with the package, the clips that they are trained and measured on, and the quickstart."""

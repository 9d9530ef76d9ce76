"""A Johnson-Lindenstrauss projection whose signs are computed where they are used."""

"""Mirrors uimjax/understand/dynamics."""

"""Mirrors uimjax/understand."""

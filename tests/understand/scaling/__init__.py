"""Mirrors uimjax/understand/scaling."""

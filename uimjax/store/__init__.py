"""Immutable shard files, a journal, a manifest and digests: what is written once and checked to the byte."""

from uimjax.store.base import ahead
from uimjax.store.coding import Coding, Packed, pack, row_bytes, unpack
from uimjax.store.digest import digest_array, digest_bytes, digest_file, digest_rows, digest_text, digest_tree
from uimjax.store.journal import Entry, Journal
from uimjax.store.manifest import read_json, read_manifest, write_json, write_manifest
from uimjax.store.remote import Place, Remote, on_disk, place
from uimjax.store.shards import Shard, read_shard, write_shard
from uimjax.store.stage import run_stage, stage_key

__all__ = [
    "Coding", "Entry", "Journal", "Packed", "Place", "Remote", "Shard", "ahead", "digest_array", "digest_bytes",
    "digest_file", "digest_rows", "digest_text", "digest_tree", "on_disk", "pack", "place", "read_json",
    "read_manifest", "read_shard", "row_bytes", "run_stage", "stage_key", "unpack", "write_json", "write_manifest",
    "write_shard",
]  # fmt: skip

"""What commands share: configs with flags over them, and the reader's own functions."""

from typing import Any

from uimjax.errors import UsageError


def override(kind: Any, values: dict[str, Any], flags: list[str]) -> Any:
    """Config values, then flags over them."""
    import tyro

    from uimjax.config import parse

    config = parse(kind, values, "config")
    if not flags:
        return config
    return tyro.cli(kind, default=config, args=flags, prog="uimjax ... ")


def loaded(reference: str, wanted: str, count: int) -> tuple[Any, ...]:
    """What the reader's own function returns, the first of it a Task."""
    from uimjax.references import call
    from uimjax.task import Task

    found = call(reference)
    if not isinstance(found, tuple) or len(found) != count or not isinstance(found[0], Task):
        raise UsageError(f"{reference} returned {type(found).__name__}; {wanted} was wanted")
    return found


def mesh_of(config: Any) -> Any:
    """Of the devices of this process that a config asks for; None for one."""
    import jax

    from uimjax.mesh import make_mesh

    return None if config.devices == 1 else make_mesh(config.devices, jax.local_devices())
